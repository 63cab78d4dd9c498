"""Typed configuration of an autoregressive flow: the published constructor options, and what they mean block by block.

`StarflowConfig` and `TarflowConfig` carry the option names of apple/ml-starflow and apple/ml-tarflow, so a published
configuration reads as it is. Everything behind them (model, exporter, checks) works from `block_configs`, which spells
out each flow block on its own. What those options call the top block is the deep block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from starflow.runtime.plain.errors import UsageError
from starflow.training.frozen import Frozen
from starflow.training.layers.image_config import ImageConfig
from starflow.training.layers.layer_config import LayerConfig, head_dim_problem
from starflow.training.layers.model_limits import (
    MOST_BLOCKS,
    MOST_CLASSES,
    MOST_LAYERS,
    MOST_SIDE,
    MOST_TOKENS,
    MOST_WIDTH,
)
from starflow.training.layers.tokens import Patch, least_sides

DENOISER_LAYERS = 8
MOST_CLIP = 1e6  # published models clip at 1 to 20; exp of the square root overflows

Layers = Annotated[int, Field(ge=0, le=MOST_LAYERS)]  # of one flow block


class BlockOptions(Frozen):
    """The network of one flow block, in the terms of the option `top_block_override`.

    With the option, rotary positions of the deep block are one-dimensional, as in a language model.
    """

    channels: int = Field(gt=0, le=MOST_WIDTH)
    num_layers: int = Field(ge=0, le=MOST_LAYERS)
    num_heads: int = Field(ge=0, le=MOST_WIDTH)
    head_dim: int = Field(gt=0, le=MOST_WIDTH)
    num_kv_heads: int | None = Field(None, gt=0, le=MOST_WIDTH)
    expansion: float = Field(4, gt=0, le=MOST_WIDTH)
    use_rope: bool = True
    hf_style_rope: bool = False
    use_swiglu: bool = False
    use_qk_norm: bool = False
    use_post_norm: bool = False
    use_final_norm: bool = True
    use_bias: bool = True
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    use_proj_txt: bool = True

    def layer(self) -> dict[str, Any]:
        """The fields of `BlockConfig` that these options decide alone."""
        heads, kv_heads = self.num_heads, self.num_kv_heads or self.num_heads
        if self.num_layers and not heads:
            raise ValueError(f"channels {self.channels} hold no head of head_dim {self.head_dim}")
        if self.num_layers and heads % kv_heads:
            raise ValueError(f"num_kv_heads {kv_heads} does not divide num_heads {heads}")
        return {
            "layers": self.num_layers,
            "channels": self.channels,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": self.head_dim,
            "hidden": int(self.channels * self.expansion),
            "norm": self.norm_type,
            "gated_mlp": self.use_swiglu,
            "qk_norm": self.use_qk_norm,
            "post_norm": self.use_post_norm,
            "bias": self.use_bias,
            "final_norm": self.use_final_norm,
            "half_rotation": self.hf_style_rope,
        }


# Options of the whole model that every block takes over under the same name.
SHARED_OPTIONS = {
    *("num_kv_heads", "head_dim", "hf_style_rope", "use_swiglu", "use_qk_norm", "use_post_norm", "use_final_norm"),
    *("use_bias", "norm_type"),
}


Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]


class PatchedConfig(ImageConfig):
    """What STARFlow and TARFlow share: flow blocks, each of which cuts the data into patches of its own.

    A block with larger patches has fewer tokens and more values in each of them, so it decodes several fine tokens a step.
    """

    num_blocks: int = Field(gt=0, le=MOST_BLOCKS)
    # Side, or height and width, of the patches of each flow block in pixels of the data, from block 0 on; None: patch_size.
    block_patch_sizes: tuple[tuple[Side, Side], ...] | None = None

    @field_validator("block_patch_sizes", mode="before")
    @classmethod
    def _sides(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [(side, side) if isinstance(side, int) else side for side in value]

    @model_validator(mode="after")
    def _blocks_tile_the_image(self) -> "PatchedConfig":
        patches = self.block_patch_sizes
        if patches is None:
            return self
        if len(patches) != self.num_blocks:
            raise ValueError(f"block_patch_sizes has {len(patches)} entries for num_blocks {self.num_blocks}")
        for height, width in patches:
            if self.img_size % height or self.img_size % width:
                raise ValueError(f"block_patch_sizes: img_size {self.img_size} does not consist of {height}x{width}")
            if self.in_channels * height * width > MOST_WIDTH or self.img_size**2 // (height * width) > MOST_TOKENS:
                raise ValueError(f"block_patch_sizes: patches of {height}x{width} make too many tokens or values")
        return self

    def patch(self, index: int) -> Patch:
        """Height and width of the patches of a flow block."""
        return (self.patch_size,) * 2 if self.block_patch_sizes is None else self.block_patch_sizes[index]

    @property
    def patches(self) -> set[Patch]:
        """Height and width of every patch that data consist of."""
        return {(self.patch_size, self.patch_size), *(self.block_patch_sizes or ())}

    def grid(self, shape: Sequence[int]) -> tuple[int, int]:
        grid = super().grid(shape)
        height, width = least_sides(self.patches)
        if shape[2] % height or shape[3] % width:
            raise UsageError(
                f"data of shape {tuple(shape)} does not consist of whole patches of every flow block: give H as a"
                f" multiple of {height} and W of {width}"
            )
        return grid


class StarflowConfig(PatchedConfig):
    """STARFlow (Gu et al., NeurIPS 2025): deep-shallow flow with the options of apple/ml-starflow.

    `img_size` is in latent pixels; images of other shapes can be sampled as well.
    """

    family: Literal["starflow"] = "starflow"
    pt_seq_len: int | None = Field(
        None, gt=0, le=MOST_SIDE
    )  # side rotary positions are scaled to; None: img_size / patch_size
    top_block_channels: int | None = Field(None, gt=0, le=MOST_WIDTH)
    num_heads: int | None = Field(None, gt=0, le=MOST_WIDTH)
    num_kv_heads: int | None = Field(None, gt=0, le=MOST_WIDTH)
    layers_per_block: tuple[Layers, ...]  # one entry: the same for all; 0: identity block; last entry: deep block
    txt_size: int = Field(0, ge=0, le=MOST_TOKENS)  # text tokens (0: unconditional)
    txt_dim: int = Field(0, ge=0, le=MOST_CLASSES)
    cond_top_only: bool = False
    rope: bool = False
    sos: bool = False
    seq_order: Literal["L2R", "R2L"] = "R2L"  # with an even number of blocks, L2R leaves the deep block in raster order
    use_softplus: bool = False
    soft_clip: float = Field(0, ge=0, le=MOST_CLIP)
    use_final_norm: bool = False
    hf_style_rope: bool = False
    use_swiglu: bool = False
    use_qk_norm: bool = False
    use_post_norm: bool = False
    use_bias: bool = True
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    top_block_override: BlockOptions | None = None
    learnable_self_denoiser: bool = False  # a network beside the flow that cleans samples (see `denoise`)
    conditional_denoiser: bool = False  # whether it reads the text as well

    @field_validator("layers_per_block", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _consistent(self) -> "StarflowConfig":
        if self.txt_size and not self.txt_dim:
            raise ValueError("txt_size needs a txt_dim")
        if self.rope and (problem := head_dim_problem(self.head_dim, text_model=self.txt_size > 0)):
            raise ValueError(problem)
        if self.learnable_self_denoiser and not self.rope:
            raise ValueError("learnable_self_denoiser needs rope: it has no other positions")
        if self.learnable_self_denoiser and self.conditional_denoiser and not self.txt_size:
            raise ValueError("conditional_denoiser needs a txt_size")
        block_configs(self)
        return self


class TarflowConfig(PatchedConfig):
    """TARFlow (Zhai et al., ICML 2025) with the options of apple/ml-tarflow."""

    family: Literal["tarflow"] = "tarflow"
    patch_size: int = Field(gt=0)
    layers_per_block: int = Field(gt=0, le=MOST_LAYERS)
    num_classes: int = Field(0, ge=0, le=MOST_CLASSES)
    nvp: bool = True  # False: volume preserving (no scale) with a learned prior

    @model_validator(mode="after")
    def _consistent(self) -> "TarflowConfig":
        block_configs(self)
        return self


AutoregressiveConfig = StarflowConfig | TarflowConfig


@dataclass(frozen=True, kw_only=True)
class BlockConfig(LayerConfig):
    """One flow block, spelled out: all that its network and its step graph depend on."""

    index: int  # place in the flow; 0 stands next to the data, the deep block is last
    reversed: bool  # whether the block reads its tokens last to first
    patch: Patch  # height and width of the patches that are its tokens, in pixels of the data
    token_dim: int  # width D of a token (patch vector)
    layers: int  # transformer layers; 0 is an identity block without parameters
    final_norm: bool
    # `axes` (rotary row/column, plus the third axis in models with text), `line` (rotary index in [condition,
    # tokens]), `learned` (a table added to the tokens) or `none`.
    positions: Literal["axes", "line", "learned", "none"]
    # `prefix` (condition tokens in front of the sequence), `class` (a class vector added to every token) or `none`.
    condition: Literal["prefix", "class", "none"]
    condition_width: int  # width of a condition token before projection, or the number of classes
    # How a becomes sigma: softplus(a + 0.5413), exp(a), or 1 (volume preserving).
    scale: Literal["softplus", "exp", "unit"]
    project_condition: bool = False  # whether condition tokens go through `proj_txt`
    # Whether a learned start token opens the sequence; otherwise outputs are shifted by one.
    start_token: bool = False
    soft_clip: float = 0.0  # c of c * tanh(o / c) on the network's output; 0 is off

    @property
    def output_dim(self) -> int:
        """Width of `proj_out`: scale and shift, or shift alone."""
        return self.token_dim if self.scale == "unit" else 2 * self.token_dim

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the block's tokens in data of this height and width in pixels."""
        return height // self.patch[0], width // self.patch[1]


def block_configs(config: AutoregressiveConfig) -> tuple[BlockConfig, ...]:
    """Every flow block of a model, from the data side (0) to the deep one; ValueError if options exclude each other."""
    if isinstance(config, TarflowConfig):
        _check_layers(config.num_blocks * config.layers_per_block)
        return tuple(_tarflow_block(config, index) for index in range(config.num_blocks))
    count, layers = config.num_blocks, config.layers_per_block
    if len(layers) != 1 and len(layers) < count:
        raise ValueError(f"layers_per_block has {len(layers)} entries for num_blocks {count}")
    # With surplus entries the published code takes the first ones for the shallow blocks and the last for the deep one.
    layers = layers * count if len(layers) == 1 else (*layers[: count - 1], layers[-1])
    _check_layers(sum(layers))
    return tuple(_starflow_block(config, index, layers[index], deep=index == count - 1) for index in range(count))


def _check_layers(count: int) -> None:
    if count > MOST_LAYERS:
        raise ValueError(f"its blocks have {count:,} layers, expected at most {MOST_LAYERS:,} in all")


def denoiser_config(config: StarflowConfig) -> BlockConfig:
    """The learned denoiser: a shallow block's transformer without causality or start token, whose `raw` output is read.

    The published code gives it eight layers, whatever the flow has.
    """
    return replace(
        _starflow_block(config, 0, DENOISER_LAYERS, deep=False),
        causal=False,
        reversed=False,
        patch=(config.patch_size, config.patch_size),
        token_dim=config.token_dim,
        condition="prefix" if config.conditional_denoiser else "none",
        condition_width=config.txt_dim if config.conditional_denoiser else 0,
        project_condition=config.conditional_denoiser,
        start_token=False,
        scale="unit",
        soft_clip=0.0,
    )


def _starflow_block(config: StarflowConfig, index: int, layers: int, *, deep: bool) -> BlockConfig:
    conditioned = config.txt_size > 0 and (deep or not config.cond_top_only)
    override = config.top_block_override if deep else None
    if override is not None:
        options = override
        if conditioned and not override.use_proj_txt and config.txt_dim != override.channels:
            raise ValueError(f"without proj_txt, txt_dim {config.txt_dim} must equal {override.channels}")
    else:
        channels = (config.top_block_channels if deep else None) or config.channels
        options = BlockOptions(
            channels=channels,
            num_layers=layers,
            num_heads=config.num_heads or channels // config.head_dim,
            use_rope=config.rope,
            **config.model_dump(include=SHARED_OPTIONS),
        )
    patch = config.patch(index)
    return BlockConfig(
        index=index,
        reversed=index % 2 == (0 if config.seq_order == "L2R" else 1),
        patch=patch,
        token_dim=config.in_channels * patch[0] * patch[1],
        positions="learned" if not options.use_rope else "axes" if override is None else "line",
        condition="prefix" if conditioned else "none",
        condition_width=config.txt_dim if conditioned else 0,
        project_condition=conditioned and options.use_proj_txt,
        start_token=config.sos,
        scale="softplus" if config.use_softplus else "exp",
        soft_clip=config.soft_clip,
        **options.layer(),
    )


def _tarflow_block(config: TarflowConfig, index: int) -> BlockConfig:
    options = BlockOptions(
        channels=config.channels,
        num_layers=config.layers_per_block,
        num_heads=config.channels // config.head_dim,
        head_dim=config.head_dim,
        use_final_norm=False,
    )
    patch = config.patch(index)
    return BlockConfig(
        index=index,
        reversed=index % 2 == 1,
        patch=patch,
        token_dim=config.in_channels * patch[0] * patch[1],
        positions="learned",
        condition="class" if config.num_classes else "none",
        condition_width=config.num_classes,
        scale="exp" if config.nvp else "unit",
        **options.layer(),
    )
