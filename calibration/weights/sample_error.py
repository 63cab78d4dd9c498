"""What a change of the graphs does to the samples, measured by sampling."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from starflow.calibration.weights.graph_edit import EditedGraph
from starflow.export.onnx_graph.tensor_roles import graph_tensors
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.errors import NotFiniteError, StarflowError
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.autoregressive import RecordedTrace, decode_given
from starflow.runtime.traces.case import Case


@dataclass(frozen=True)
class SampleError:
    """How far samples are from the exact ones of the same noise, ||x - exact|| / ||exact||."""

    total: float  # over all images together
    # Over the images one by one.
    median: float
    worst: float


def sample_error(found: NDArray, exact: NDArray) -> SampleError:
    """Compare samples [N, C, H, W]; what is not finite counts as infinitely far."""
    if not np.isfinite(found).all():
        return SampleError(np.inf, np.inf, np.inf)
    images = len(exact)
    difference = np.linalg.norm((found.astype(np.float64) - exact).reshape(images, -1), axis=1)
    size = np.linalg.norm(exact.astype(np.float64).reshape(images, -1), axis=1)
    each = difference / size
    total = np.linalg.norm(difference) / np.linalg.norm(size)
    return SampleError(float(total), float(np.median(each)), float(each.max()))


def sample(bundle: Bundle, variant: Variant, case: Case, threads: int) -> NDArray[np.float32]:
    """Sample a case token by token, [N, C, H, W]; NaN throughout where a flow block broke down."""
    with OnnxRuntimeBackend(bundle, variant, threads=threads) as backend:
        sampler = Sampler(bundle, variant, backend, "sequential")
        try:
            return sampler.generate(case.noise, case.condition, case.null_condition, guidance=case.guidance)
        except NotFiniteError:
            return np.full((len(case.noise), *bundle.manifest.model.data_shape), np.nan, np.float32)


def error_given(bundle: Bundle, variant: Variant, block: int, trace: RecordedTrace, images: int, threads: int) -> float:
    """Relative error of one block's tokens when each is given the exact ones before it: one pass over all positions.

    Args:
        trace: Exact tokens, with what each block was given.
        images: How many of its images to look at, in whole batches.
        threads: Threads within an operator; 0 takes one per physical core.
    """
    spec = bundle.autoregressive.blocks[block]
    batches = trace.inputs[block]
    tokens = np.split(trace.tokens[block], len(batches))
    count = max(1, images // bundle.manifest.batch)
    above = below = 0.0
    with OnnxRuntimeBackend(bundle, variant, threads=threads) as backend:
        runner = backend.block_runner(block)
        for inputs, exact in zip(batches[:count], tokens[:count], strict=True):
            found = decode_given(runner, spec, inputs, exact)
            above += float(np.square(found.astype(np.float64) - exact).sum())
            below += float(np.square(exact.astype(np.float64)).sum())
    return float(np.sqrt(above / below))


@contextmanager
def candidate(bundle: Bundle, variant: Variant, graphs: Mapping[int, EditedGraph]) -> Iterator[Variant]:
    """A variant some of whose graphs are replaced, for as long as the context lasts.

    Args:
        bundle: The bundle; the graphs have to lie in it, beside the weights they share with the variant.
        variant: The variant they are edits of.
        graphs: By flow block.

    Raises:
        StarflowError: a graph cannot be written: the disk is full.
    """
    with ExitStack() as stack:
        paths = {
            block: stack.enter_context(candidate_file(bundle, f"block{block}", graph))
            for block, graph in graphs.items()
        }
        specs = tuple(
            _respecified(graph, graphs[graph.block].model, paths[graph.block].relative_to(bundle.folder).as_posix())
            if graph.block in paths
            else graph
            for graph in variant.graphs
        )
        yield variant.model_copy(update={"graphs": specs})


@contextmanager
def candidate_file(bundle: Bundle, name: str, graph: EditedGraph) -> Iterator[Path]:
    """A graph on disk beside those of a bundle, whose weights it may share, for as long as the context lasts.

    Raises:
        StarflowError: it cannot be written: the disk is full.
    """
    path = f"graphs/.candidate-{os.getpid()}.{name}.onnx"
    written = bundle.folder / path
    try:
        try:
            onnx.save(
                graph.embedded(),
                written,
                save_as_external_data=True,
                location=f"{written.name}.weights",
                size_threshold=4096,
            )
        except OSError as error:
            raise StarflowError(f"{bundle.root / path}: cannot be written ({error.strerror or error})") from None
        yield written
    finally:
        written.unlink(missing_ok=True)
        Path(f"{written}.weights").unlink(missing_ok=True)


def _respecified(graph: GraphSpec, model: onnx.ModelProto, path: str) -> GraphSpec:
    """The entry of a graph for another file, whose caches may have another type."""
    inputs, outputs = graph_tensors(model)
    file = FileSpec.model_construct(path=path, bytes=0, sha256="")
    return graph.model_copy(update={"file": file, "inputs": inputs, "outputs": outputs})


def remove_abandoned(bundle: Bundle) -> None:
    """Delete candidates that a killed process left."""
    for path in (bundle.folder / "graphs").glob(".candidate-*"):
        path.unlink(missing_ok=True)
