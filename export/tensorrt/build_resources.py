"""Estimates whether memory and disk suffice for a build, before minutes go into it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from starflow.runtime.plain.errors import ExportError
from starflow.runtime.plain.memory import available_memory, gibibytes


@dataclass(frozen=True)
class Footprint:
    """What building a graph takes."""

    copies: int  # of its weights in memory, at the peak
    fixed_bytes: int  # of memory besides: the library, kernels, the network, what runs of it need
    engine: float  # of disk at least, in units of its weights


# Weights are mapped from the file once, and TensorRT holds at most two copies while it writes the engine. Measured with TensorRT RTX
# 1.7 on a block of 384 MiB: 2.6 with one profile, 2.9 with two and with three.
BLOCK = Footprint(copies=3, fixed_bytes=512 << 20, engine=1.0)
# Of the weights in float32, which NumPy runs before TensorRT builds and float16 halves. Measured on encoders of T5 stored in
# float16: 5.0 GiB for 1.27 GiB of weights, 13.8 GiB for 4.56 GiB.
NETWORK = Footprint(copies=3, fixed_bytes=1536 << 20, engine=0.5)


def needed_memory(weight_bytes: int, footprint: Footprint = BLOCK) -> int:
    """Bytes of memory a build of a graph of so many bytes of weights takes at its peak."""
    return footprint.copies * weight_bytes + footprint.fixed_bytes


def check_room(what: str, weight_bytes: int, folder: Path, footprint: Footprint = BLOCK) -> None:
    """Raise ExportError unless memory, and the disk of `folder`, hold the build of `what`, a graph of these weights."""
    needed, available = needed_memory(weight_bytes, footprint), available_memory()
    if available is not None and available < needed:
        raise ExportError(
            f"{what}: the build needs about {gibibytes(needed)} of memory ({footprint.copies} x {gibibytes(weight_bytes)} "
            f"of weights and {gibibytes(footprint.fixed_bytes)}), but only {gibibytes(available)} are available; build on a larger machine"
        )
    free, least = shutil.disk_usage(folder).free, int(footprint.engine * weight_bytes)
    if free < least:  # an engine holds all weights, and more
        raise ExportError(
            f"{folder}: the engine of {what} needs more than {gibibytes(least)}, but only {gibibytes(free)} are free; "
            "free some space"
        )
