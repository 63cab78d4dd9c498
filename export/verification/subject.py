"""What is compared of a bundle: flow blocks token by token, or the path of a continuous flow step by step."""

from collections.abc import Callable, Mapping
from typing import Protocol

from numpy.typing import NDArray

from starflow.export.verification.tolerances import Kind
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.traces.case import Case
from starflow.runtime.traces.trace import Trace

Found = dict[Kind, dict[int, NDArray]]


class Subject(Protocol):
    """What a family of flows offers to compare.

    Attributes:
        blocks: By index, from the top down.
        unit: What errors are told for, along the second axis of a trace: `token` or `step`.
        kinds: With which inputs things are run.
        kind_text: What each kind means, for reports.
        model: The model in a few words.
    """

    @property
    def blocks(self) -> Mapping[int, Block]: ...

    @property
    def unit(self) -> str: ...

    @property
    def kinds(self) -> tuple[Kind, ...]: ...

    @property
    def kind_text(self) -> Mapping[Kind, str]: ...

    @property
    def model(self) -> str: ...

    def trace(self, variant: Variant, backend: Backend, case: Case) -> Trace:
        """Sample the case as `starflow sample` does."""

    def run(
        self, variant: Variant, backend: Backend, case: Case, expected: Trace, on_block: Callable[[int], None]
    ) -> Found:
        """Sample the case, and run each block on what the reference says it is given: by kind and block [N, T, D]."""

    def expected(self, kind: Kind, trace: Trace, case: Case) -> Mapping[int, NDArray]:
        """What a reference's trace of the case says `run` should find, of one kind."""

    def data(self, trace: Trace) -> NDArray:
        """The finished sample, [N, *data_shape]."""

    def load(self, variant: Variant, backend: Backend) -> None:
        """Open one graph, to see whether the backend can."""
