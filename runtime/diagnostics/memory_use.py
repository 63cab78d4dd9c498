"""Memory that sampling with a variant takes: as the manifest predicts it, and as the process is seen to take it."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.bytes_read import cache_bytes
from starflow.runtime.bundle.graph_spec import tensor_bytes
from starflow.runtime.bundle.manifest import Variant

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # written to clear_refs, this makes VmHWM start again from the present size; see proc(5)


@dataclass(frozen=True)
class PredictedMemory:
    """Bytes that stay allocated while a variant's blocks are open.

    It leaves out what a run allocates in passing and what a session needs for itself: a few MiB for each block.
    """

    weights: int  # weights of all blocks, as they are laid out for computing
    caches: int
    buffers: int  # all other inputs and outputs, for single steps

    @property
    def total(self) -> int:
        return self.weights + self.caches + self.buffers


def predict_memory(bundle: Bundle, variant: Variant) -> PredictedMemory:
    """Memory of a variant while all of its blocks are open.

    ONNX Runtime copies the matrices into a layout of its own, one by one, and unmaps each as soon as it is copied, so nothing
    is in memory twice, not even while loading. The scales of block-quantised matrices (MatMulNBits) are the exception: the new
    layout holds them and sums of the same size, and the scales of the file stay mapped. Of a bundle on the Hub whose weights
    were not fetched, scales are not counted.
    """
    weights = sum(graph.weight_bytes for graph in variant.graphs)
    if variant.lowering == "cpu" and variant.quantization and not bundle.is_away(variant.weights):
        weights += 2 * _scale_bytes(bundle.path(variant.weights))
    caches = sum(map(cache_bytes, variant.graphs))
    inputs = sum(tensor_bytes(spec) for graph in variant.graphs for spec in graph.inputs)
    return PredictedMemory(weights, caches, buffers=inputs - caches)


def _scale_bytes(path: Path) -> int:
    with safe_open(path, "np") as file:
        names = [name for name in file.keys() if name.endswith((".int8.scales", ".int4.scales"))]  # noqa: SIM118
        slices = [file.get_slice(name) for name in names]
        # One scale for each output, as of MatMulInteger, stays where it is.
        return sum(4 * shape[0] * shape[1] for shape in (part.get_shape() for part in slices) if len(shape) == 2)


@dataclass(frozen=True)
class MeasuredMemory:
    """Bytes this process grew by."""

    # Growth at the end, of memory of its own and mapped files of the bundle; the code of libraries, which processes
    # share, does not count.
    resident: int
    peak: int  # largest growth of the whole resident set on the way, libraries included


class MemoryGauge:
    """Watches the resident memory of this process (Linux tells it in /proc), and of `files` while they are mapped."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = {str(file.resolve()) for file in files}
        with suppress(OSError):  # not Linux, or not allowed: then a peak of before may hide the one meant
            (PROCESS / "clear_refs").write_text(RESET_PEAK)
        self._start = self._read()

    def grown(self) -> MeasuredMemory | None:
        """How far memory grew since the start; None where the system does not say."""
        if self._start is None or (now := self._read()) is None:
            return None
        (own, resident, _), (own_now, _, peak) = self._start, now
        return MeasuredMemory(own_now - own, peak - resident)

    def _read(self) -> tuple[int, int, int] | None:
        """Own and mapped bytes, resident set, its peak."""
        try:
            mapped, status = self._mapped(), (PROCESS / "status").read_text()
        except OSError:
            return None
        anonymous, resident, peak = (
            1024 * int(found[1]) if (found := re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)) else 0
            for name in ("RssAnon", "VmRSS", "VmHWM")
        )
        return anonymous + mapped, resident, peak

    def _mapped(self) -> int:
        """Bytes of the files that are resident. Read by lines: the whole text, megabytes of it, would count itself."""
        total, counts = 0, False
        with (PROCESS / "smaps").open() as lines:
            for line in lines:
                if "-" in line.partition(" ")[0]:  # "55d0c6a00000-55d0c6a21000 r--p 00000000 08:01 131 /path"
                    _, slash, path = line.rstrip("\n").partition("/")
                    counts = slash + path in self._files
                elif counts and line.startswith("Rss:"):
                    total += 1024 * int(line.split()[1])
        return total
