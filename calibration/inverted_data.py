"""Data the user gives, as samples to calibrate on: the noise that makes them is found flow block by flow block."""

import zipfile
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
from starflow.runtime.traces.autoregressive import RecordedTrace


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
