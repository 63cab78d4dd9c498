"""What the sampling loop asks of a backend."""

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from numpy.typing import NDArray

from starflow.runtime.backends.continuous_runner import VelocityRunner
from starflow.runtime.plans.decode_plan import Iterated

BackendName = Literal["auto", "onnxruntime", "tensorrt"]
Provider = Literal["cpu", "cuda", "tensorrt"]  # execution providers of ONNX Runtime


@dataclass(frozen=True)
class BlockInputs:
    """What one flow block gets before its first token.

    Attributes:
        noise: [B, T, D] float32 in block order.
        condition: [rows, m, width] float32, [conditional, null] where the block is guided; for a block with a prefix.
        label: [rows] int64, for a block conditioned by class vector.
        scalars: Every other per-image input by role: guidance weights [B], inverse temperature [rows], float32.
    """

    noise: NDArray
    condition: NDArray | None
    label: NDArray | None
    scalars: dict[str, NDArray]


class BlockRunner(Protocol):
    """Runs one flow block: owns its buffers and caches, and keeps the position between calls."""

    def prefill(self, inputs: BlockInputs) -> None:
        """Start a sequence: take its inputs and write the condition into the caches."""

    def advance(self, steps: int) -> None:
        """Decode the next `steps` tokens one by one."""

    def iterate(self, segment: Iterated) -> int:
        """Decode the segment's tokens together; return the number of passes that took."""

    def read(self) -> NDArray:
        """The decoded sequence, [B, T, D] float32 in block order (a copy)."""

    def clear(self) -> None:
        """Forget what is in the caches, after a value that is not finite."""


class BandwidthProbe(Protocol):
    """Measures how fast a device's memory is, in bytes a second; a context manager that owns what it needs for that."""

    def measure(self) -> float: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Backend(Protocol):
    """A device and the runners of a variant's graphs; leaving the context frees both.

    Attributes:
        name: What ran, for reports: `onnxruntime cpu`, `tensorrt`.
    """

    @property
    def name(self) -> str: ...

    def bandwidth_probe(self) -> BandwidthProbe:
        """A probe of the memory the runners' weights are in."""

    def runner(self, block: int) -> BlockRunner:
        """The runner of a flow block, made when first asked for; for autoregressive flows."""

    def velocity_runner(self) -> VelocityRunner:
        """The runner of the velocity graph, made when first asked for; for continuous flows."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
