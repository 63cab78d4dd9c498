"""Where the time of a step goes, by ONNX Runtime's profiler.

The profiler itself takes a few microseconds for each operator, so it watches a run of its own, never a timed one, and its cost is
subtracted: within an operator it is the time of the cheapest one, which does next to nothing; between operators it follows from
the same steps without a profiler. If the operators still take longer than those steps, they are scaled down to them.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starflow.runtime.autoregressive.sampling_loop import block_inputs
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest, Block
from starflow.runtime.bundle.bytes_read import step_bytes
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.diagnostics.benchmark import some_condition
from starflow.runtime.plain.errors import BackendError, UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.sampler import Sampler

PRODUCTS, ATTENTION, NORMS, OTHER = "matrix products", "attention", "norms, activations", "other operators"
BETWEEN = "between operators"

# Parts of operator names; the first kind that fits counts, since fused operators carry the names of what they hold.
KINDS = {
    ATTENTION: ("Attention", "TensorScatter", "Rotary"),
    PRODUCTS: ("MatMul", "Gemm"),
    NORMS: ("Normalization", "Gelu", "Sigmoid", "Softplus", "Softmax", "Swish", "Tanh", "Relu"),
}
STEPS = 48  # in the middle of a sequence, where caches are as full as on average


@dataclass(frozen=True)
class KindTime:
    """Time per token of all operators of one kind, over all flow blocks."""

    kind: str  # one of `KINDS`, or `between operators` for the time that steps take beyond their operators
    milliseconds: float  # time per token
    # Time to read the weights (of matrix products) or the valid caches (of attention) once.
    floor_milliseconds: float
    operators: dict[str, float]  # milliseconds per token by operator, the largest first


@dataclass(frozen=True)
class StepProfile:
    """A token, decoded by single steps."""

    variant: str
    milliseconds: float  # time of a step in the middle of a sequence, without a profiler
    profiled_milliseconds: float  # time of the same steps under the profiler
    kinds: tuple[KindTime, ...]  # the parts of a step, with the profiler's cost subtracted

    @property
    def floor_milliseconds(self) -> float:
        """The floor of a whole token."""
        return sum(kind.floor_milliseconds for kind in self.kinds)


def profiling_backend(sampler: Sampler) -> OnnxRuntimeBackend:
    """The sampler's backend, if it can time operators; else UsageError."""
    backend = sampler.backend
    if not isinstance(backend, OnnxRuntimeBackend) or backend.name != "onnxruntime cpu":
        raise UsageError(
            f"--explain is not available on backend {backend.name}: only ONNX Runtime on the CPU times its operators; "
            "leave it out, or add --backend onnxruntime"
        )
    return backend


def profile_steps(sampler: Sampler, *, guidance: float, bandwidth: float) -> StepProfile:
    """Run some steps of every flow block, plain, and again in a session that the profiler watches.

    Args:
        sampler: An open sampler of the variant, on ONNX Runtime's CPU backend.
        bandwidth: Bytes a second.

    Raises:
        UsageError: the sampler has another backend.
        BackendError: the profiler did not write what it should.
    """
    backend = profiling_backend(sampler)
    manifest = sampler.bundle.autoregressive
    weight = Guidance(guidance if manifest.guidance else 0.0)
    operators: dict[str, float] = defaultdict(float)
    plain, profiled, weights, caches = 0.0, 0.0, 0, 0
    for graph in sampler.variant.graphs:
        block = manifest.blocks[graph.block]
        plain += _decode_middle(backend, manifest, block, weight)
        with tempfile.TemporaryDirectory(prefix="starflow-profile-") as folder:
            with backend.profiled(block.index, Path(folder)) as watched:
                profiled += _decode_middle(watched, manifest, block, weight)
            for name, milliseconds in _operators(Path(folder), _middle(block)[1]).items():
                operators[name] += milliseconds
        weights += graph.weight_bytes
        caches += step_bytes(graph, block) - graph.weight_bytes
    floors = {PRODUCTS: 1000 * weights / bandwidth, ATTENTION: 1000 * caches / bandwidth}
    return StepProfile(sampler.variant.name, plain, profiled, _by_kind(operators, plain, floors))


def kind_of(operator: str) -> str:
    """The kind an operator counts as."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), OTHER)


def _middle(block: Block) -> tuple[int, int]:
    """Where profiled steps start, and how many there are."""
    tokens = block.capacity - block.prefix
    steps = min(STEPS, tokens)
    return block.prefix + (tokens - steps) // 2, steps


def _decode_middle(backend: Backend, manifest: AutoregressiveManifest, block: Block, guidance: Guidance) -> float:
    """Decode the steps in the middle twice, the first time to warm up; milliseconds a step."""
    shape = (manifest.batch, *block.token_shape(manifest.model))
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    runner = backend.block_runner(block.index)
    conditions = encode_conditions(manifest.conditioning, manifest.batch, *some_condition(manifest), guided=True)
    runner.prefill(block_inputs(manifest, block, noise, conditions, [guidance] * manifest.batch, 1.0))
    start, steps = _middle(block)
    for _ in range(2):
        runner.seek(start)
        begin = time.perf_counter()
        runner.advance(steps)
        end = time.perf_counter()
    return 1000 * (end - begin) / steps


def _operators(folder: Path, steps: int) -> dict[str, float]:
    """Milliseconds of a step by operator, from the last runs the profiler noted in a folder."""
    runs = [run for file in folder.iterdir() for run in _runs(json.loads(file.read_text(encoding="utf-8")))]
    if len(runs) < 2 * steps:
        raise BackendError(f"ONNX Runtime's profiler noted {len(runs)} runs of more than {2 * steps}")
    durations: dict[str, list[int]] = defaultdict(list)
    for run in runs[-steps:]:
        for name, microseconds in run:
            durations[name].append(microseconds)
    cheapest = min(sum(values) / len(values) for values in durations.values())
    return {name: (sum(values) - cheapest * len(values)) / steps / 1000 for name, values in durations.items()}


def _runs(events: Iterable[Mapping[str, Any]]) -> Iterator[list[tuple[str, int]]]:
    """Operators and their microseconds, run by run: a run is noted after its operators."""
    operators: list[tuple[str, int]] = []
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            operators.append((event["args"]["op_name"], event["dur"]))
        elif event["name"] == "model_run":
            yield operators
            operators = []


def _by_kind(operators: Mapping[str, float], total: float, floors: Mapping[str, float]) -> tuple[KindTime, ...]:
    scale = min(1.0, total / sum(operators.values()))
    operators = {name: scale * milliseconds for name, milliseconds in operators.items()}
    kinds = []
    for kind in (PRODUCTS, ATTENTION, NORMS, OTHER):
        own = {name: time for name, time in operators.items() if kind_of(name) == kind}
        largest_first = dict(sorted(own.items(), key=lambda pair: -pair[1]))
        kinds.append(KindTime(kind, sum(own.values()), floors.get(kind, 0.0), largest_first))
    between = max(0.0, total - sum(operators.values()))  # scaled ones may exceed it by a rounding error
    return (*kinds, KindTime(BETWEEN, between, 0.0, {}))
