"""What is compared of a bundle: flow blocks token by token, or the path of a continuous flow step by step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from starflow.export.verification.tolerances import Kind
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.traces.case import Case, Trace

Found = dict[Kind, dict[int, NDArray]]


@dataclass(frozen=True)
class Part:
    """Something whose values [N, T, D] are compared."""

    name: str  # in findings, such as `flow block 2`
    index: int = 0  # of the flow block; 0 where there are no blocks
    unit: str = "token"  # what an index along T counts: `token`, `step` or `pixel`
    prefix: int = 0  # positions in the caches before the first token that is decoded
    first_token: int = 0  # that token; those before it pass unchanged

    def position(self, token: int) -> int:
        """Where a token stands in the caches; one that passes the block unchanged counts as the first."""
        return self.prefix + max(0, token - self.first_token)


class Subject(ABC):
    """What a family of flows offers to compare."""

    parts: Mapping[int, Part]  # by index, in the order of sampling
    kinds: Mapping[Kind, str]  # with which inputs they are run, and what each kind means, for reports
    model: str  # in a few words

    @property
    def unit(self) -> str:
        return next(iter(self.parts.values())).unit

    @abstractmethod
    def trace(self, variant: Variant, backend: Backend, case: Case) -> Trace:
        """Sample the case as `starflow sample` does."""

    @abstractmethod
    def model_trace(self, model: Any, case: Case, conditions: tuple[Any, Any]) -> Trace:
        """Sample the case with the PyTorch model of a checkpoint, under the condition and the null condition."""

    @abstractmethod
    def run(
        self, variant: Variant, backend: Backend, case: Case, expected: Trace, on_part: Callable[[Part], None]
    ) -> Found:
        """Sample the case, and run each part on what the reference says it is given: by kind and index [N, T, D]."""

    def expected(self, kind: Kind, trace: Trace, case: Case) -> Mapping[int, NDArray]:
        """What `run` should find of one kind, by the reference's trace of the case."""
        return trace.tokens

    @abstractmethod
    def data(self, trace: Trace) -> NDArray:
        """The finished sample, [N, *data_shape]."""

    @abstractmethod
    def load(self, variant: Variant, backend: Backend) -> None:
        """Open one graph, to see whether the backend can."""
