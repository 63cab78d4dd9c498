"""Estimates whether memory and disk suffice for a build, before minutes go into it."""

import shutil
from pathlib import Path

from starflow.runtime.plain.errors import ExportError
from starflow.runtime.plain.memory import available_memory, gibibytes

# Most memory a build holds, in units of the block's weights: they are mapped from the file once, and TensorRT holds at most two
# copies while it writes the engine. Measured with TensorRT RTX 1.7 on a block of 384 MiB: 2.6 with one profile, 2.9
# with two and with three.
WEIGHT_COPIES = 3
# The library itself, kernels and the network: what a block of next to no weights takes.
FIXED_BYTES = 512 << 20


def needed_memory(weight_bytes: int) -> int:
    """Bytes of memory a build of a block of so many bytes of weights takes at its peak."""
    return WEIGHT_COPIES * weight_bytes + FIXED_BYTES


def check_room(block: int, weight_bytes: int, folder: Path) -> None:
    """Raise ExportError unless memory, and the disk of `folder`, hold the build of a block of these weights."""
    needed, available = needed_memory(weight_bytes), available_memory()
    if available is not None and available < needed:
        raise ExportError(
            f"flow block {block}: the build needs about {gibibytes(needed)} of memory ({WEIGHT_COPIES} x {gibibytes(weight_bytes)} "
            f"of weights and {gibibytes(FIXED_BYTES)}), but only {gibibytes(available)} are available; build on a larger machine"
        )
    free = shutil.disk_usage(folder).free
    if free < weight_bytes:  # an engine holds all weights, and more
        raise ExportError(
            f"{folder}: the engine of flow block {block} needs more than {gibibytes(weight_bytes)}, but only {gibibytes(free)} are free; "
            "free some space"
        )
