"""Data the user gives, as samples to calibrate on: the noise that makes them is found flow block by flow block.

A step graph only samples: x = z sigma + mu, with mu and sigma from the tokens before. Given all tokens of x, one pass with
z = 0 yields mu and one with z = 1 yields sigma + mu, and z = (x - mu) / sigma is what the block above made.
"""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.trace import RecordedTrace, decode_given
from starflow.runtime.backends.base import BlockInputs
from starflow.runtime.backends.onnxruntime import OnnxRuntimeBackend
from starflow.runtime.bundle import Bundle
from starflow.runtime.conditions import Conditions, encode_conditions
from starflow.runtime.errors import UsageError
from starflow.runtime.guidance import Guidance
from starflow.runtime.manifest import Block
from starflow.runtime.sampling_loop import block_inputs
from starflow.runtime.tokens import patchify


def read_data(path: Path, bundle: Bundle) -> tuple[NDArray[np.float32], NDArray | None]:
    """Read x [N, C, H, W] and, where there is one, condition (class ids [N], or features [N, m, width]) from an .npz file.

    Raises:
        UsageError: it is no such file, or its arrays do not fit the bundle.
    """
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: is not a readable .npz file ({error})") from None
    if "x" not in arrays or not set(arrays) <= {"x", "condition"}:
        raise UsageError(f"{path}: holds {sorted(arrays)}; give x [N, C, H, W] and, for conditioned models, condition")
    x, shape = arrays["x"], bundle.manifest.model.data_shape
    if x.shape[1:] != shape or not len(x):
        raise UsageError(
            f"{path}: x has shape {list(x.shape)}; this bundle makes data [N, {', '.join(map(str, shape))}]"
        )
    if any(array.dtype.kind not in "fiu" or not np.isfinite(array).all() for array in arrays.values()):
        raise UsageError(f"{path}: its arrays must hold finite numbers")
    return x.astype(np.float32), arrays.get("condition")


def invert_data(
    x: NDArray[np.float32], condition: NDArray | None, threads: int = 0
) -> Callable[[Bundle], RecordedTrace]:
    """What every flow block makes and is given while it samples this data without guidance.

    Args:
        x: [N, C, H, W], scaled as the model was trained. Batches are filled up with the last image.
        condition: Class ids [N], or features [N, m, width].
        threads: Threads within an operator; 0 takes one per physical core.

    Returns:
        A function of the bundle, as `calibrate_weights` takes it.
    """

    def trace(bundle: Bundle) -> RecordedTrace:
        manifest = bundle.autoregressive
        count = -(-len(x) // manifest.batch) * manifest.batch
        index = np.minimum(np.arange(count), len(x) - 1)
        given = encode_conditions(manifest.conditioning, len(x), condition, None, guided=False).part(index)
        batches = np.split(patchify(x[index], manifest.model), count // manifest.batch)
        conditions = [given.part(part) for part in np.split(np.arange(count), len(batches))]
        found = RecordedTrace({}, {})
        with OnnxRuntimeBackend(bundle, bundle.variant("cpu-fp32", "cpu"), threads=threads) as backend:
            for block in manifest.blocks:
                if block.identity:
                    continue
                runner = backend.runner(block.index)
                tokens = [batch[:, ::-1] if block.reversed else batch for batch in batches]
                inputs = [_inputs(bundle, block, made, c) for made, c in zip(tokens, conditions, strict=True)]
                mu, above = (
                    [
                        decode_given(runner, block, replace(each, noise=np.full_like(made, value)), made)
                        for each, made in zip(inputs, tokens, strict=True)
                    ]
                    for value in (0.0, 1.0)
                )
                noise = [_noise(block, *each) for each in zip(tokens, mu, above, strict=True)]
                found.tokens[block.index] = np.concatenate(tokens)
                found.inputs[block.index] = [replace(e, noise=z) for e, z in zip(inputs, noise, strict=True)]
                batches = [z[:, ::-1] if block.reversed else z for z in noise]
        return found

    return trace


def _inputs(bundle: Bundle, block: Block, tokens: NDArray, conditions: Conditions) -> BlockInputs:
    return block_inputs(bundle.autoregressive, block, tokens, conditions, Guidance(0.0), 1.0)


def _noise(block: Block, tokens: NDArray, mu: NDArray, above: NDArray) -> NDArray:
    first = block.first_token  # a token before it passes unchanged
    predicted = (tokens[:, first:] - mu[:, first:]) / (above[:, first:] - mu[:, first:])
    return np.concatenate([tokens[:, :first], predicted], axis=1)
