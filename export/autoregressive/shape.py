"""The latent shapes a flow is exported for: sizes of every step graph at each of them."""

from dataclasses import dataclass

from starflow.export.autoregressive.geometry import StepGeometry, step_geometry
from starflow.export.export_options import ExportOptions
from starflow.runtime.plain.errors import ExportError, UsageError
from starflow.training.autoregressive.config import TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow


@dataclass(frozen=True)
class FlowShape:
    """One shape.

    Attributes:
        height, width: Of the data, in (latent) pixels.
        geometries: Sizes of the step graph of each flow block that has one.
        max_chunk: Most tokens of one run.
    """

    height: int
    width: int
    geometries: dict[int, StepGeometry]
    max_chunk: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def flow_shapes(
    model: AutoregressiveFlow, options: ExportOptions, condition_tokens: int, guided: frozenset[int]
) -> tuple[FlowShape, ...]:
    """The shapes that were asked for, the default one first.

    Args:
        model: The flow, on the meta device.
        options: What was asked for.
        condition_tokens: Condition tokens of a block that takes any.
        guided: Indices of the blocks that run [conditional, null] rows.

    Raises:
        ExportError, UsageError: the model cannot have one of them.
    """
    sizes = (options.shape or (model.config.img_size, model.config.img_size), *options.other_shapes)
    if len(set(sizes)) < len(sizes):
        raise UsageError(f"--shape {' '.join(f'{height}x{width}' for height, width in sizes)}: name every shape once")
    return tuple(_flow_shape(model, options, condition_tokens, guided, *size) for size in sizes)


def _flow_shape(
    model: AutoregressiveFlow,
    options: ExportOptions,
    condition_tokens: int,
    guided: frozenset[int],
    height: int,
    width: int,
) -> FlowShape:
    config, patch = model.config, model.config.patch_size
    if height < 1 or width < 1 or height % patch or width % patch:
        raise UsageError(f"--shape {height}x{width}: sides must be multiples of the patch size {patch}")
    if isinstance(config, TarflowConfig) and (height, width) != (config.img_size, config.img_size):
        raise UsageError(f"--shape {height}x{width}: TARFlow decodes {config.img_size}x{config.img_size} only")
    geometries = {
        block.index: step_geometry(
            block,
            batch=options.batch,
            guided=block.index in guided,
            condition_tokens=condition_tokens,
            height=height // patch,
            width=width // patch,
        )
        for block in model.block_configs
        if block.layers
    }
    for index, geometry in geometries.items():
        if geometry.capacity < 1:
            raise ExportError(f"flow block {index} decodes no token: one token and no start token leave nothing to do")
    longest = max((geometry.capacity for geometry in geometries.values()), default=1)
    max_chunk = longest if options.max_chunk is None else options.max_chunk
    if not 1 <= max_chunk <= longest:
        raise UsageError(f"--max-chunk {max_chunk}: this model's blocks take 1 to {longest} tokens at {height}x{width}")
    return FlowShape(height, width, geometries, max_chunk)
