"""What a graph has to take and make, and the first thing in which a manifest's description of one differs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starflow.runtime.bundle.graph_spec import TensorSpec

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Expected:
    """The tensor of a role. One that is `optional` may be missing."""

    dtype: str
    shape: Shape
    optional: bool = False


def misfit(specs: Iterable[TensorSpec], expected: Mapping[str, Expected], what: str) -> str | None:
    """What is wrong with the tensors of a graph, of which each role occurs once; None if nothing is.

    Args:
        specs: Inputs or outputs; caches are left out.
        expected: What each role has to be.
        what: `takes` or `makes`, for the message.
    """
    found: dict[str, TensorSpec] = {}
    for spec in specs:
        if spec.role in found:
            return f"{what} {spec.role} twice"
        found[spec.role] = spec
    for role, spec in found.items():
        if role not in expected:
            return f"{what} {role}, which does not fit the model"
        wanted = expected[role]
        if (spec.dtype, spec.shape) != (wanted.dtype, wanted.shape):
            return f"{what} {role} {spec.dtype} {_shape(spec.shape)}, expected {wanted.dtype} {_shape(wanted.shape)}"
    missing = [role for role, wanted in expected.items() if role not in found and not wanted.optional]
    return f"{what} no {missing[0]}" if missing else None


def _shape(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
