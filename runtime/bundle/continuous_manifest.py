"""The manifest of a continuous flow."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from starflow.runtime.bundle.manifest import FlowManifest
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.validation import Part
from starflow.runtime.plans.integration_plan import IntegrationSpec


class ContinuousSummary(Part):
    """What the bundle of a continuous flow was made from.

    `data_shape` is [C, H, W], or [D] for points; noise, states and data have it.
    """

    family: Literal["continuous-flow"]
    network: Literal["transformer", "mlp"]
    parameters: int
    data_shape: Annotated[tuple[int, ...], Field(min_length=1, max_length=3)]


class ContinuousManifest(FlowManifest):
    """`manifest.json` of a continuous flow: one velocity graph, integrated from noise (t = 0) to data (t = 1).

    Attributes:
        guided: Whether the graph runs [conditional, null] rows and takes a guidance weight.
        max_passes: Rows of the table of passes.
        plans: Calibrated plans, one for a backend and variant.
    """

    model: ContinuousSummary
    guided: bool
    max_passes: int = Field(gt=0)
    plans: tuple[IntegrationSpec, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "ContinuousManifest":
        """Sizes stated twice must agree: a runtime may rely on any of them."""
        state = (self.batch, *self.model.data_shape)
        shapes = {"x": state, "point": state, "total": state, "pass": (1,), "passes": (self.max_passes, 4)}
        for variant in self.variants:
            if [graph.block for graph in variant.graphs] != [0]:
                raise ValueError(f"variant {variant.name}: must have one graph, of block 0")
            (graph,) = variant.graphs
            inputs: dict[str, tuple[int | str, ...]] = {spec.role: spec.shape for spec in graph.inputs}
            outputs = {spec.role: spec.shape for spec in graph.outputs}
            if {role: inputs.get(role) for role in shapes} != shapes:
                raise ValueError(f"variant {variant.name}: its graph must take {_shapes(shapes)}")
            made = {**shapes, "velocity": state}
            del made["passes"]
            if outputs != made:
                raise ValueError(f"variant {variant.name}: its graph must make {_shapes(made)}")
            if ("guidance" in inputs) != self.guided:
                raise ValueError(f"variant {variant.name}: takes guidance or does not, against guided {self.guided}")
        named = {variant.name for variant in self.variants}
        for spec in self.plans:
            if spec.variant not in named:
                raise ValueError(f"plans: one is for a variant {spec.variant}; there are {', '.join(sorted(named))}")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the data; none for points."""
        shape = self.model.data_shape
        return ((shape[1], shape[2]),) if len(shape) == 3 else ()

    def at_shape(self, height: int, width: int) -> "ContinuousManifest":
        """The manifest itself, if its data has this height and width.

        Raises:
            UsageError: it has not.
        """
        if (height, width) not in self.sizes:
            made = "x".join(map(str, self.model.data_shape[1:])) or "points"
            raise UsageError(f"shape {height}x{width}: this bundle has {made}; a continuous flow has one shape")
        return self

    def plan_for(self, backend: str, variant: str) -> IntegrationSpec | None:
        """The plan calibrated for a backend and a variant."""
        return next((plan for plan in self.plans if (plan.backend, plan.variant) == (backend, variant)), None)


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())
