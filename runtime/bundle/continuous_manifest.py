"""The manifest of a continuous flow."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from starflow.runtime.bundle.manifest import MOST_BATCH_SIZES, Changes, FlowManifest, FlowSummary, OtherBatch, Place
from starflow.runtime.bundle.tensor_contract import Expected, misfit
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.calibrated_integration_plan import CalibratedIntegrationPlan


class ContinuousSummary(FlowSummary):
    """The model of a continuous flow. Noise, states and data all have the shape `data_shape`."""

    family: Literal["continuous-flow"]
    network: Literal["transformer", "mlp"]
    parameters: int = Field(ge=0)
    data_shape: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, max_length=3)]


class ContinuousBatch(OtherBatch):
    """The fields of a manifest that differ for batches of another size."""

    plans: tuple[CalibratedIntegrationPlan, ...] = ()


class ContinuousManifest(FlowManifest):
    """`manifest.json` of a continuous flow: one velocity graph, integrated from noise (t = 0) to data (t = 1).

    Attributes:
        guided: Whether the graph runs [conditional, null] rows and takes a guidance weight.
        max_passes: Number of rows of the table of passes.
        plans: Calibrated plans, at most one for each backend and variant.
    """

    family_name: ClassVar[str] = "continuous"

    model: ContinuousSummary
    guided: bool
    max_passes: int = Field(gt=0)
    plans: tuple[CalibratedIntegrationPlan, ...] = ()
    batches: Annotated[tuple[ContinuousBatch, ...], Field(max_length=MOST_BATCH_SIZES - 1)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "ContinuousManifest":
        """Sizes that are stated twice must agree: a runtime may rely on either."""
        given, state = self.conditioning, Expected("float32", (self.batch, *self.model.data_shape))
        rows = self.batch * (2 if self.guided else 1)
        kept = {"x": state, "point": state, "total": state, "pass": Expected("int64", (1,))}
        inputs = {**kept, "passes": Expected("float32", (self.max_passes, 4))}
        if given.kind == "class-label":
            inputs["label"] = Expected("int64", (rows,))
        if given.tokens:
            inputs["condition"] = Expected("float32", (rows, given.tokens, given.width))
        if self.guided:
            inputs["guidance"] = Expected("float32", (self.batch,))
        for variant in self.variants:
            if [graph.block for graph in variant.graphs] != [0]:
                raise ValueError(f"variant {variant.name}: must have one graph, of block 0")
            if variant.students:
                raise ValueError(f"variant {variant.name}: has students, which are for flow blocks")
            (graph,) = variant.graphs
            fault = misfit(graph.inputs, inputs, "takes") or misfit(graph.outputs, {**kept, "velocity": state}, "makes")
            if fault:
                raise ValueError(f"variant {variant.name}: its graph {fault}")
        self._check_batches()
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the data; empty for points."""
        shape = self.model.data_shape
        return ((shape[1], shape[2]),) if len(shape) == 3 else ()

    def at_shape(self, height: int, width: int) -> "ContinuousManifest":
        """The manifest itself, if its data has this height and width.

        Raises:
            UsageError: the data have another shape.
        """
        if (height, width) not in self.sizes:
            only = "x".join(map(str, self.model.data_shape[1:])) or "points"
            raise UsageError(f"shape {height}x{width}: this bundle has {only}; a continuous flow has one shape")
        return self

    def replaced(self, changes: Changes) -> "ContinuousManifest":
        """The manifest with some fields replaced at some batch sizes.

        Raises:
            ValidationError: the new fields do not fit.
        """
        batches = tuple(dict(other) | changes.get(Place(None, other.batch), {}) for other in self.batches)
        return ContinuousManifest.model_validate(dict(self) | {"batches": batches} | changes.get(Place(None, None), {}))

    def plan_for(self, backend: str, variant: str) -> CalibratedIntegrationPlan | None:
        """The plan calibrated for a backend and a variant."""
        return next((plan for plan in self.plans if (plan.backend, plan.variant) == (backend, variant)), None)
