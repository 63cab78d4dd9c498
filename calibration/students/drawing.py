"""Drawing pairs: the runtime samples exactly, and keeps what goes into a flow block and what comes out."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from starflow.calibration.cases import GivenConditions
from starflow.runtime.autoregressive.loop import AutoregressiveLoop
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.choice import open_backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.family import Request
from starflow.runtime.noise import draw_noise
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plain.progress import Report, no_report
from starflow.training.students.pairs import SHARD, PairSet, begin_pairs, shard_path, write_shard


def draw_pairs(
    bundle: Bundle, pairs: PairSet, folder: Path, features: GivenConditions | None, progress: Report = no_report
) -> None:
    """Draw the shards that are not there yet.

    Args:
        bundle: The teacher's, with a variant in float32 for the CPU.
        folder: Where the shards go.
        features: For a model conditioned on captions.

    Raises:
        UsageError: the folder holds another set.
        NotFiniteError: the model samples NaN or infinity.
    """
    begin_pairs(folder, pairs)
    missing = [number for number in range(pairs.shards) if not shard_path(folder, number).is_file()]
    if not missing:
        return
    variant, backend = open_backend(bundle, "onnxruntime", variant="cpu-fp32", provider="cpu", threads=0)
    with backend:
        loop = AutoregressiveLoop(bundle, variant, backend, SEQUENTIAL)
        for done, number in enumerate(missing):
            progress(done * SHARD, len(missing) * SHARD)
            write_shard(folder, number, _shard(loop, backend, bundle, pairs, number, features))


def _shard(
    loop: AutoregressiveLoop,
    backend: Backend,
    bundle: Bundle,
    pairs: PairSet,
    number: int,
    features: GivenConditions | None,
) -> dict[str, torch.Tensor]:
    manifest, first = bundle.autoregressive, number * SHARD
    noise = draw_noise(loop.noise_shape, SHARD, pairs.seed, first=first)
    generator = np.random.default_rng([pairs.seed, number])
    low, high = pairs.guidance
    guidance = generator.uniform(low, high, SHARD).astype(np.float32)
    chosen: NDArray | None = None
    given: NDArray | None = None
    null: NDArray | None = None
    if features is not None:
        chosen = generator.integers(len(features.tokens), size=SHARD)
        given, null = features.tokens[chosen], features.null
    elif manifest.conditioning.kind != "none":
        chosen = np.arange(first, first + SHARD) % manifest.conditioning.num_classes
        given = chosen
    conditions = encode_conditions(manifest.conditioning, SHARD, given, null, guided=high > 0)
    inputs, tokens = [], []
    for index in np.split(np.arange(SHARD), range(manifest.batch, SHARD, manifest.batch)):
        whole = index[np.arange(manifest.batch) % len(index)]  # the last one is filled up
        request = Request([Guidance(float(weight)) for weight in guidance[whole]])
        loop.check(request)
        blocks = loop.blocks(noise[whole], conditions.part(whole), request)
        made = next(made for made in blocks if made.block.index == pairs.block)
        inputs.append(made.inputs.noise[: len(index)].copy())
        tokens.append(made.tokens[: len(index)].copy())
    drawn = {"noise": inputs, "tokens": tokens}
    tensors = {name: torch.from_numpy(np.concatenate(parts).astype(np.float32)) for name, parts in drawn.items()}
    tensors["guidance"] = torch.from_numpy(guidance)
    if chosen is not None:
        tensors["condition"] = torch.from_numpy(np.asarray(chosen, np.int64))
    return tensors
