"""The manifest of an autoregressive flow."""

from collections.abc import Collection, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.manifest import (
    MOST_BATCH_SIZES,
    MOST_VARIANTS,
    Changes,
    FlowManifest,
    FlowSummary,
    OtherBatch,
    Place,
    Variant,
)
from starflow.runtime.bundle.network_spec import AutoencoderSpec, DenoiserSpec, NetworkSpec, StudentSpec, TextSpec
from starflow.runtime.bundle.step_graph_contract import step_graph_misfit
from starflow.runtime.bundle.tensor_contract import Expected, misfit
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.validation import Part, one_line
from starflow.runtime.plans.calibrated_decode_plan import CalibratedDecodePlan

Size = Annotated[int, Field(gt=0)]
Patch = tuple[Size, Size]  # height and width of a patch, in pixels of the data


class ModelSummary(FlowSummary):
    """The model of an autoregressive flow."""

    family: Literal["starflow", "tarflow"]
    parameters: int = Field(ge=0)
    noise_std: float = Field(ge=0)
    data_shape: tuple[Size, Size, Size]
    noise_layout: Literal["image", "tokens"]
    patch_size: Size
    patch_order: Literal["row-column-channel", "channel-row-column"]
    tokens: Size
    token_dim: Size

    @property
    def patch(self) -> Patch:
        """Height and width of a patch."""
        return self.patch_size, self.patch_size


class Block(Part):
    """A flow block.

    Attributes:
        index: 0 for the block next to the data; the deep block has the highest index and comes first in sampling.
        identity: Whether the block changes nothing and has no graph.
        reversed: Whether the block takes tokens in reversed raster order.
        rows: Number of rows of its network: 2 x batch if it is guided, else batch.
        prefix: Number of condition tokens, which take positions 0 .. prefix - 1.
        first_token: Index of the first token the network predicts: 0, or 1 if the first token passes unchanged.
        capacity: Number of positions in its caches.
        patch: Height and width of the patches that are its tokens; null if they are the model's.
    """

    index: int = Field(ge=0)
    identity: bool
    reversed: bool
    rows: int = Field(ge=0)
    prefix: int = Field(ge=0)
    first_token: Literal[0, 1]
    capacity: int = Field(ge=0)
    patch: Patch | None = None

    def patch_in(self, model: ModelSummary) -> Patch:
        """Height and width of the patches that are its tokens."""
        return self.patch or model.patch

    def token_shape(self, model: ModelSummary) -> tuple[int, int]:
        """Number and width of its tokens, (T, D)."""
        (channels, height, width), (p, q) = model.data_shape, self.patch_in(model)
        return (height // p) * (width // q), channels * p * q


class GuidanceSpec(Part):
    """How conditional and null rows are combined: `ratio` (STARFlow) or `linear` (TARFlow); see docs/bundle.md."""

    rule: Literal["ratio", "linear"]
    blocks: tuple[int, ...]


class AutoregressiveBatch(OtherBatch):
    """The fields of a manifest that differ for batches of another size. Blocks differ in their rows only."""

    blocks: tuple[Block, ...]
    plans: tuple[CalibratedDecodePlan, ...] = ()
    students: tuple[StudentSpec, ...] = ()


# Smaller batch sizes, the largest of them first.
Batches = Annotated[tuple[AutoregressiveBatch, ...], Field(max_length=MOST_BATCH_SIZES - 1)]


class OtherShape(Part):
    """The fields of a manifest that differ for data of another height and width. Variants differ in their graphs only."""

    model: ModelSummary
    max_chunk: int = Field(gt=0)
    blocks: tuple[Block, ...]
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=MOST_VARIANTS)]
    plans: tuple[CalibratedDecodePlan, ...] = ()
    text: TextSpec | None = None
    autoencoder: AutoencoderSpec | None = None
    denoisers: tuple[DenoiserSpec, ...] = ()
    students: tuple[StudentSpec, ...] = ()
    batches: Batches = ()


class AutoregressiveManifest(FlowManifest):
    """`manifest.json` of an autoregressive flow.

    `shapes` are further heights and widths of the data; `at_shape` returns the manifest for one of them, at all batch sizes.
    """

    family_name: ClassVar[str] = "autoregressive"

    model: ModelSummary
    guidance: GuidanceSpec | None
    attention_temperature: bool
    max_chunk: int = Field(gt=0)
    prior: FileSpec | None
    blocks: tuple[Block, ...]
    plans: tuple[CalibratedDecodePlan, ...] = ()
    students: tuple[StudentSpec, ...] = ()
    shapes: tuple[OtherShape, ...] = ()
    batches: Batches = ()

    @model_validator(mode="after")
    def _consistent(self) -> "AutoregressiveManifest":
        """Sizes that are stated twice must agree: a runtime may rely on either."""
        model, given = self.model, self.conditioning
        channels, height, width = model.data_shape
        (rows, below), (columns, beside) = divmod(height, model.patch_size), divmod(width, model.patch_size)
        if below or beside or (model.tokens, model.token_dim) != (rows * columns, channels * model.patch_size**2):
            raise ValueError(
                f"{model.tokens} tokens of {model.token_dim} values do not fill data of shape {model.data_shape}"
                f" in patches of {model.patch_size}"
            )
        if [block.index for block in self.blocks] != list(range(len(self.blocks))):
            raise ValueError("blocks: must be in the order of their index, with none left out")
        guided = self.guidance.blocks if self.guidance else ()
        for block in self.blocks:
            if block.identity:
                continue
            p, q = block.patch_in(model)
            if height % p or width % q:
                raise ValueError(f"blocks.{block.index}: data of shape {model.data_shape} do not consist of {p}x{q}")
            rows = self.batch * (2 if block.index in guided else 1)
            capacity = block.prefix + block.token_shape(model)[0] - block.first_token
            if block.rows != rows or block.prefix not in (0, given.tokens) or block.capacity != capacity:
                raise ValueError(
                    f"blocks.{block.index}: rows, prefix or capacity do not fit batch, conditioning and tokens"
                )
        working = [block.index for block in self.blocks if not block.identity]
        for variant in self.variants:
            if [graph.block for graph in variant.graphs] != working:
                raise ValueError(f"variant {variant.name}: must have one graph for each of the flow blocks {working}")
            for graph in variant.graphs:
                fault = self._graph_misfit(graph)
                if fault:
                    raise ValueError(f"variant {variant.name}, block {graph.block}: {fault}")
        if self.max_chunk > max((block.capacity for block in self.blocks), default=1):
            raise ValueError(f"max_chunk {self.max_chunk}: exceeds the capacity of every block")
        self._check_students()
        for spec in self.plans:
            # A stored plan is the default, and stays within its budget: it has no students, not even those there are.
            fault = spec.plan.misfit(self.decoded_tokens(), self.max_chunk, self.batch)
            if fault:
                raise ValueError(f"plans: {spec.backend}, {spec.variant}: {fault}")
        self._check_batches()
        for other in self.shapes:
            height, width = other.model.data_shape[1:]
            if [each.batch for each in other.batches] != [each.batch for each in self.batches]:
                raise ValueError(f"shapes, {height}x{width}: its batch sizes differ from those of the default shape")
            if _distilled(other.students) != _distilled(self.students):
                raise ValueError(f"shapes, {height}x{width}: its students differ from those of the default shape")
            try:
                self._with(other)
            except ValidationError as error:
                raise ValueError(f"shapes, {height}x{width}: {one_line(error)}") from None
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("shapes: a shape occurs twice")
        return self

    def _check_students(self) -> None:
        """See that every student belongs to this model, and takes and makes what its flow block does."""
        found = [student.block for student in self.students]
        working = self.decoded_tokens()
        if found != sorted(set(found) & set(working)):
            raise ValueError(f"students: found flow blocks {found}; expected some of {sorted(working)} in this order")
        for student in self.students:
            if student.teacher != self.provenance.checkpoint_sha256:
                raise ValueError(f"students: that of flow block {student.block} was distilled from another checkpoint")
            self._check_student_network(student.block, student.network, "students")
        for variant in self.variants:
            quantised = [student.block for student in variant.students]
            if quantised != [block for block in found if block in quantised]:
                raise ValueError(
                    f"variant {variant.name}: has students of {quantised}; expected some of {found} in this order"
                )
            for each in variant.students:
                self._check_student_network(each.block, each.network, f"variant {variant.name}")

    def _check_student_network(self, block: int, network: NetworkSpec, where: str) -> None:
        given = self.conditioning
        tokens = Expected("float32", (self.batch, *self.blocks[block].token_shape(self.model)))
        inputs = {"noise": tokens, "guidance": Expected("float32", (self.batch,))}
        if given.kind == "class-label":
            inputs["label"] = Expected("int64", (self.batch,), optional=True)
        elif given.tokens:
            inputs["condition"] = Expected("float32", (self.batch, given.tokens, given.width), optional=True)
        fault = misfit(network.inputs, inputs, "takes") or misfit(network.outputs, {"token": tokens}, "makes")
        if fault:
            raise ValueError(f"{where}: {network.file.path} {fault}")

    def _graph_misfit(self, graph: GraphSpec) -> str | None:
        block, given = self.blocks[graph.block], self.conditioning
        guided = self.guidance is not None and graph.block in self.guidance.blocks
        return step_graph_misfit(
            graph,
            batch=self.batch,
            rows=block.rows,
            capacity=block.capacity,
            token_dim=block.token_shape(self.model)[1],
            condition_width=given.width if block.prefix else 0,
            labelled=given.kind == "class-label",
            guidance=self.guidance.rule if self.guidance and guided else None,
            attention_temperature=self.attention_temperature,
        )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the data for every shape, the default one first."""
        return (self.model.data_shape[1:], *(other.model.data_shape[1:] for other in self.shapes))

    def at_shape(self, height: int, width: int) -> "AutoregressiveManifest":
        """The manifest for one shape only, at every batch size.

        Raises:
            UsageError: the bundle has no such shape.
        """
        if (height, width) == self.sizes[0]:
            return self.model_copy(update={"shapes": ()})
        for other in self.shapes:
            if other.model.data_shape[1:] == (height, width):
                return self._with(other)
        known = ", ".join(f"{height}x{width}" for height, width in self.sizes)
        raise UsageError(f"shape {height}x{width}: this bundle has {known}; `starflow export --shape` adds others")

    def replaced(self, changes: Changes) -> "AutoregressiveManifest":
        """The manifest with some fields replaced at some shapes and batch sizes.

        Raises:
            ValidationError: the new fields do not fit.
        """

        def changed(part: "AutoregressiveManifest | OtherShape", shape: tuple[int, int] | None) -> dict[str, Any]:
            batches = tuple(dict(other) | changes.get(Place(shape, other.batch), {}) for other in part.batches)
            return dict(part) | {"batches": batches} | changes.get(Place(shape, None), {})

        shapes = tuple(changed(other, other.model.data_shape[1:]) for other in self.shapes)
        fields = changed(self, None) | {"shapes": shapes}
        kept = self.model_copy(update={"variants": fields["variants"]})  # what they need decides on the schema
        fields["schema_version"] = kept._oldest_schema(batches=bool(self.batches))
        return AutoregressiveManifest.model_validate(fields)

    def _with(self, other: OtherShape) -> "AutoregressiveManifest":
        return AutoregressiveManifest.model_validate(dict(self) | dict(other) | {"shapes": ()})

    def _of_one_batch(self) -> dict[str, Any]:
        return super()._of_one_batch() | {"shapes": ()}

    def _has_own_patches(self) -> bool:
        return any(block.patch for block in self.blocks)

    def _has_students(self) -> bool:
        return bool(self.students)

    def _of_all_batches(self) -> dict[str, object]:
        blocks = [block.model_copy(update={"rows": 0}) for block in self.blocks]
        return super()._of_all_batches() | {"blocks": blocks, "students": _distilled(self.students)}

    @property
    def guided(self) -> bool:
        """Whether the bundle takes a guidance weight."""
        return self.guidance is not None

    def longest_run(self, block: int) -> int:
        return min(self.max_chunk, self.blocks[block].capacity)

    def files(self, variants: Collection[str] | None = None) -> Iterator[FileSpec]:
        if self.prior:
            yield self.prior
        yield from super().files(variants)
        for size in self.sizes[1:]:
            yield from self.at_shape(*size).files(variants)

    def networks(self) -> Iterator[NetworkSpec]:
        yield from super().networks()
        yield from (student.network for student in self.students)

    def decoded_tokens(self) -> dict[int, int]:
        """Number of tokens decoded in each flow block that has a graph."""
        return {block.index: block.capacity - block.prefix for block in self.blocks if not block.identity}

    def plan_for(self, backend: str, variant: str) -> CalibratedDecodePlan | None:
        """The plan calibrated for a backend and a variant."""
        return next((plan for plan in self.plans if (plan.backend, plan.variant) == (backend, variant)), None)

    def run_by(self, variant: str) -> "AutoregressiveManifest":
        """The manifest with the students that a variant of this name runs: its own where it has one, else those in float32."""
        mine = (each.students for each in self.variants if each.name == variant)
        own = {student.block: student.network for student in next(mine, ())}
        students = (each.model_copy(update={"network": own.get(each.block, each.network)}) for each in self.students)
        return self.model_copy(update={"students": tuple(students)})

    @property
    def student_blocks(self) -> tuple[int, ...]:
        """The flow blocks that have a student."""
        return tuple(student.block for student in self.students)


def _distilled(students: Collection[StudentSpec]) -> list[dict[str, Any]]:
    """What students are, whatever the shape and the batch size."""
    return [student.model_dump(exclude={"network"}) for student in students]
