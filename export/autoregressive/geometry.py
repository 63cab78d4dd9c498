"""Sizes that step graphs are built for, at every shape and batch size of a bundle: the exporter decides them, the runtime must agree."""

from dataclasses import dataclass

from starflow.export.export_options import ExportOptions
from starflow.runtime.plain.errors import ExportError, UsageError
from starflow.training.autoregressive.config import TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow


@dataclass(frozen=True)
class StepGeometry:
    """Static sizes of one block's step graph.

    A position is an index into the caches: condition tokens first, then the block's network inputs. The network input at
    position p predicts one token; row p of the noise and sample buffers belongs to that token. With a start token the
    inputs are [start, x_0 .. x_{T-2}] and predict x_0 .. x_{T-1}; without one they are x_0 .. x_{T-2}, predict
    x_1 .. x_{T-1}, and x_0 passes unchanged.
    """

    batch: int  # images B decoded together
    rows: int  # rows of the network: 2B where guidance needs [conditional, null] halves, else B
    prefix: int  # condition tokens m in front
    # Image size in tokens of the block.
    height: int
    width: int
    start_token: bool

    @property
    def tokens(self) -> int:
        """Length T of the sequence."""
        return self.height * self.width

    @property
    def first_token(self) -> int:
        """Index of the first token the network predicts."""
        return 0 if self.start_token else 1

    @property
    def capacity(self) -> int:
        """Positions in a cache: condition tokens and network inputs."""
        return self.prefix + self.tokens - self.first_token

    @property
    def guided(self) -> bool:
        return self.rows == 2 * self.batch


@dataclass(frozen=True)
class FlowSize:
    """One of the shapes, at one of the batch sizes."""

    batch: int

    # Of the data, in (latent) pixels.
    height: int
    width: int
    geometries: dict[int, StepGeometry]  # sizes of the step graph of each flow block that has one
    max_chunk: int


def flow_sizes(
    model: AutoregressiveFlow, options: ExportOptions, condition_tokens: int, guided: frozenset[int]
) -> tuple[FlowSize, ...]:
    """The sizes that were asked for, in the order of `FlowFamily.sizes`.

    `condition_tokens` are those of a block that takes any; the blocks in `guided` run [conditional, null] rows.

    Raises:
        ExportError, UsageError: the model cannot have one of them.
    """
    config = model.config

    def flow_size(height: int, width: int, batch: int) -> FlowSize:
        if isinstance(config, TarflowConfig) and (height, width) != (config.img_size, config.img_size):
            raise UsageError(f"--shape {height}x{width}: a TARFlow samples {config.img_size}x{config.img_size} only")
        geometries = {
            block.index: StepGeometry(
                batch,
                2 * batch if block.index in guided else batch,
                condition_tokens if block.condition == "prefix" else 0,
                *block.grid(height, width),
                block.start_token,
            )
            for block in model.block_configs
            if block.layers
        }
        for index, geometry in geometries.items():
            if geometry.capacity < 1:
                raise ExportError(f"flow block {index} has no token to decode: a single token, and no start token")
        longest = max((geometry.capacity for geometry in geometries.values()), default=1)
        max_chunk = longest if options.max_chunk is None else options.max_chunk
        if not 1 <= max_chunk <= longest:
            raise UsageError(f"--max-chunk {max_chunk}: give 1 to {longest} tokens at {height}x{width}")
        return FlowSize(batch, height, width, geometries, max_chunk)

    shapes, batches = options.sizes(config.img_size, config.patches), options.batches
    return tuple(flow_size(*shape, batch) for shape in shapes for batch in batches)
