"""Data the user gives, as samples to calibrate on: the noise that makes them is found flow block by flow block."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.inversion import InvertedBlock, invert_batch
from starflow.runtime.autoregressive.tokens import patchify
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_data
from starflow.runtime.traces.autoregressive import RecordedTrace


def read_data(path: Path, bundle: Bundle) -> tuple[NDArray[np.float32], NDArray | None]:
    """Read x [N, C, H, W] and, where there is one, condition (class ids [N], or features [N, m, width]) from an .npz file.

    Raises:
        UsageError: there is no such file, or its arrays do not fit the bundle.
    """
    (x, condition), shape = load_data(path), bundle.manifest.model.data_shape
    if x.shape[1:] != shape or not len(x):
        raise UsageError(
            f"{path}: x has shape {list(x.shape)}; this bundle makes data [N, {', '.join(map(str, shape))}]"
        )
    return x.astype(np.float32), condition


def invert_data(
    x: NDArray[np.float32], condition: NDArray | None, threads: int = 0
) -> Callable[[Bundle], RecordedTrace]:
    """A function of a bundle that finds the inputs and tokens of every flow block which sample this data without guidance.

    Args:
        x: [N, C, H, W], scaled as the model was trained. Batches are filled up with the last image.
        condition: Class ids [N], or features [N, m, width].
        threads: Threads within an operator; 0 takes one per physical core.
    """

    def trace(bundle: Bundle) -> RecordedTrace:
        manifest = bundle.autoregressive
        count = -(-len(x) // manifest.batch) * manifest.batch
        index = np.minimum(np.arange(count), len(x) - 1)
        given = encode_conditions(manifest.conditioning, len(x), condition, None, guided=False).part(index)
        tokens = patchify(x[index], manifest.model)
        found: dict[int, list[InvertedBlock]] = {}
        with OnnxRuntimeBackend(bundle, bundle.variant("cpu-fp32", "cpu"), threads=threads) as backend:
            for part in np.split(np.arange(count), count // manifest.batch):
                for block in invert_batch(backend, manifest, tokens[part], given.part(part)):
                    found.setdefault(block.block.index, []).append(block)
        return RecordedTrace(
            {index: np.concatenate([each.tokens for each in blocks]) for index, blocks in found.items()},
            {index: [each.inputs for each in blocks] for index, blocks in found.items()},
        )

    return trace
