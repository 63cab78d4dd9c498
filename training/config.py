"""Typed configuration of a flow: the published constructor options, and what they mean block by block.

`StarflowConfig` and `TarflowConfig` carry the option names of apple/ml-starflow and apple/ml-tarflow, so a published
configuration reads as it is. Everything behind them (model, exporter, checks) works from `block_configs`, which spells
out each flow block on its own.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from starflow.runtime.plain.caption_template import CAPTION
from starflow.training.continuous.config import VelocityConfig
from starflow.training.frozen import Frozen
from starflow.training.layers.layer_config import LayerConfig, head_dim_problem

DENOISER_LAYERS = 8


class TopBlockOverride(Frozen):
    """Settings of a language-model-style top block (its rotary positions are one-dimensional)."""

    channels: int
    num_layers: int
    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    expansion: float = 4
    use_rope: bool = True
    hf_style_rope: bool = False
    use_swiglu: bool = False
    use_qk_norm: bool = False
    use_post_norm: bool = False
    use_final_norm: bool = True
    use_bias: bool = True
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    use_proj_txt: bool = True


class StarflowConfig(Frozen):
    """STARFlow (Gu et al., NeurIPS 2025): deep-shallow flow with the options of apple/ml-starflow."""

    family: Literal["starflow"] = "starflow"
    in_channels: int = Field(gt=0)
    img_size: int = Field(gt=0)  # training size in latent pixels; other shapes are given with the data
    patch_size: int = Field(1, gt=0)
    pt_seq_len: int | None = None  # side length rotary positions are scaled to; img_size / patch_size if absent
    channels: int = Field(gt=0)
    top_block_channels: int | None = None
    head_dim: int = Field(64, gt=0)
    num_heads: int | None = None
    num_kv_heads: int | None = None
    num_blocks: int = Field(gt=0)
    layers_per_block: tuple[int, ...]  # one entry: the same for all; 0: identity block; last entry: top block
    txt_size: int = Field(0, ge=0)  # text tokens (0: unconditional)
    txt_dim: int = Field(0, ge=0)
    cond_top_only: bool = False
    rope: bool = False
    sos: bool = False
    seq_order: Literal["L2R", "R2L"] = "R2L"  # with an even number of blocks, L2R leaves the top block in raster order
    use_softplus: bool = False
    soft_clip: float = Field(0, ge=0)
    use_final_norm: bool = False
    hf_style_rope: bool = False
    use_swiglu: bool = False
    use_qk_norm: bool = False
    use_post_norm: bool = False
    use_bias: bool = True
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    top_block_override: TopBlockOverride | None = None
    learnable_self_denoiser: bool = False  # a network beside the flow that cleans samples (see `denoise`)
    conditional_denoiser: bool = False  # whether it reads the text as well

    @field_validator("layers_per_block", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _consistent(self) -> "StarflowConfig":
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
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


class TarflowConfig(Frozen):
    """TARFlow (Zhai et al., ICML 2025) with the options of apple/ml-tarflow."""

    family: Literal["tarflow"] = "tarflow"
    in_channels: int = Field(gt=0)
    img_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    channels: int = Field(gt=0)
    num_blocks: int = Field(gt=0)
    layers_per_block: int = Field(gt=0)
    num_classes: int = Field(0, ge=0)
    head_dim: int = Field(64, gt=0)
    nvp: bool = True  # False: volume preserving (no scale) with a learned prior

    @model_validator(mode="after")
    def _consistent(self) -> "TarflowConfig":
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        block_configs(self)
        return self


AutoregressiveConfig = StarflowConfig | TarflowConfig
ModelConfig = Annotated[AutoregressiveConfig | VelocityConfig, Field(discriminator="family")]


@dataclass(frozen=True, kw_only=True)
class BlockConfig(LayerConfig):
    """One flow block, spelled out: all its network and its step graph depend on.

    Attributes:
        index: Place in the flow; 0 stands next to the data, the top (deep) block is last.
        reversed: Whether the block reads its tokens last to first.
        token_dim: Width D of a token (patch vector).
        layers: Transformer layers; 0 is an identity block without parameters.
        positions: `axes` (rotary row/column, plus the third axis in models with text), `line` (rotary index in
            [condition, tokens]), `learned` (a table added to the tokens) or `none`.
        condition: `prefix` (condition tokens in front of the sequence), `class` (a class vector added to every token)
            or `none`.
        condition_width: Width of a condition token before projection, or the number of classes.
        project_condition: Whether condition tokens go through `proj_txt`.
        start_token: Whether a learned start token opens the sequence; otherwise outputs are shifted by one.
        scale: How a becomes sigma: softplus(a + 0.5413), exp(a), or 1 (volume preserving).
        soft_clip: c of c * tanh(o / c) on the network's output; 0 is off.
    """

    index: int
    reversed: bool
    token_dim: int
    layers: int
    final_norm: bool
    positions: Literal["axes", "line", "learned", "none"]
    condition: Literal["prefix", "class", "none"]
    condition_width: int
    project_condition: bool
    start_token: bool
    scale: Literal["softplus", "exp", "unit"]
    soft_clip: float

    @property
    def output_dim(self) -> int:
        """Width of `proj_out`: scale and shift, or shift alone."""
        return self.token_dim if self.scale == "unit" else 2 * self.token_dim


def block_configs(config: AutoregressiveConfig) -> tuple[BlockConfig, ...]:
    """Spell out every flow block of a model, from the data side (0) to the top block."""
    blocks = _starflow_blocks(config) if isinstance(config, StarflowConfig) else _tarflow_blocks(config)
    for block in blocks:
        if block.layers and block.heads % block.kv_heads:
            raise ValueError(f"num_kv_heads {block.kv_heads} does not divide num_heads {block.heads}")
    return blocks


def _starflow_blocks(config: StarflowConfig) -> tuple[BlockConfig, ...]:
    count = config.num_blocks
    layers = config.layers_per_block
    if len(layers) != 1 and len(layers) < count:
        raise ValueError(f"layers_per_block has {len(layers)} entries for num_blocks {count}")
    # With surplus entries the published code takes the first ones for the shallow blocks and the last for the top.
    layers = layers * count if len(layers) == 1 else (*layers[: count - 1], layers[-1])
    blocks = []
    for index in range(count):
        top = index == count - 1
        channels = config.top_block_channels if top and config.top_block_channels else config.channels
        heads = config.num_heads or channels // config.head_dim
        conditioned = config.txt_size > 0 and (top or not config.cond_top_only)
        settings = {
            "layers": layers[index],
            "channels": channels,
            "heads": heads,
            "kv_heads": config.num_kv_heads or heads,
            "head_dim": config.head_dim,
            "hidden": 4 * channels,
            "norm": config.norm_type,
            "gated_mlp": config.use_swiglu,
            "qk_norm": config.use_qk_norm,
            "post_norm": config.use_post_norm,
            "bias": config.use_bias,
            "final_norm": config.use_final_norm,
            "positions": "axes" if config.rope else "learned",
            "half_rotation": config.hf_style_rope,
            "project_condition": conditioned,
        }
        override = config.top_block_override
        if top and override:
            settings |= {
                "layers": override.num_layers,
                "channels": override.channels,
                "heads": override.num_heads,
                "kv_heads": override.num_kv_heads or override.num_heads,
                "head_dim": override.head_dim,
                "hidden": int(override.channels * override.expansion),
                "norm": override.norm_type,
                "gated_mlp": override.use_swiglu,
                "qk_norm": override.use_qk_norm,
                "post_norm": override.use_post_norm,
                "bias": override.use_bias,
                "final_norm": override.use_final_norm,
                "positions": "line" if override.use_rope else "learned",
                "half_rotation": override.hf_style_rope,
                "project_condition": conditioned and override.use_proj_txt,
            }
            if conditioned and not override.use_proj_txt and config.txt_dim != override.channels:
                raise ValueError(f"without proj_txt, txt_dim {config.txt_dim} must equal {override.channels}")
        if settings["layers"] and not settings["heads"]:
            raise ValueError(f"channels {settings['channels']} hold no head of head_dim {settings['head_dim']}")
        blocks.append(
            BlockConfig(
                index=index,
                reversed=index % 2 == (0 if config.seq_order == "L2R" else 1),
                token_dim=config.in_channels * config.patch_size**2,
                condition="prefix" if conditioned else "none",
                condition_width=config.txt_dim if conditioned else 0,
                start_token=config.sos,
                scale="softplus" if config.use_softplus else "exp",
                soft_clip=config.soft_clip,
                **settings,  # type: ignore[arg-type]
            )
        )
    return tuple(blocks)


def denoiser_config(config: StarflowConfig) -> BlockConfig:
    """The learned denoiser: a shallow block's transformer without causality or start token, whose `raw` output is read.

    The published code gives it eight layers, whatever the flow has.
    """
    shallow = _starflow_blocks(config.model_copy(update={"num_blocks": 2, "layers_per_block": (DENOISER_LAYERS,)}))[0]
    return replace(
        shallow,
        causal=False,
        reversed=False,
        condition="prefix" if config.conditional_denoiser else "none",
        condition_width=config.txt_dim if config.conditional_denoiser else 0,
        project_condition=config.conditional_denoiser,
        start_token=False,
        scale="unit",
        soft_clip=0.0,
    )


def _tarflow_blocks(config: TarflowConfig) -> tuple[BlockConfig, ...]:
    heads = config.channels // config.head_dim
    if not heads:
        raise ValueError(f"channels {config.channels} hold no head of head_dim {config.head_dim}")
    return tuple(
        BlockConfig(
            index=index,
            reversed=index % 2 == 1,
            token_dim=config.in_channels * config.patch_size**2,
            layers=config.layers_per_block,
            channels=config.channels,
            heads=heads,
            kv_heads=heads,
            head_dim=config.head_dim,
            hidden=4 * config.channels,
            norm="layer_norm",
            gated_mlp=False,
            qk_norm=False,
            post_norm=False,
            bias=True,
            final_norm=False,
            positions="learned",
            half_rotation=False,
            condition="class" if config.num_classes else "none",
            condition_width=config.num_classes,
            project_condition=False,
            start_token=False,
            scale="exp" if config.nvp else "unit",
            soft_clip=0.0,
        )
        for index in range(config.num_blocks)
    )


class Conditioning(Frozen):
    """What a model is conditioned on, in the user's terms."""

    kind: Literal["none", "class", "features"] = "none"
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    tokens: int = 0
    width: int = 0


class LatentScaling(Frozen):
    """The flow sees (latent - shift) * scale."""

    scale: float = 1.0
    shift: float = 0.0


class TextEncoding(Frozen):
    """Where the features a model is conditioned on come from; `txt_size` and `txt_dim` tell how many of what width.

    Attributes:
        encoder: The text encoder's folder, `package:NAME/FOLDER` for one inside a Python package, or the name it is
            published under.
        template: What the tokenizer gets for a caption, the empty one included; `{caption}` stands for it, and
            `{aspect_ratio}`, where it occurs, for that of the image, such as "3:2".
    """

    encoder: str
    template: str = CAPTION

    @field_validator("template")
    @classmethod
    def _holds_the_caption_once(cls, value: str) -> str:
        if value.count(CAPTION) != 1:
            raise ValueError(f"found {value!r}, expected a text with {CAPTION} in it, once")
        return value


class LatentAutoencoder(Frozen):
    """The flow's data are latents of the autoencoder in the checkpoint's `autoencoder/`, or of one named at export.

    Attributes:
        pixel_shape: [C, H, W] of the images its decoder makes.
    """

    pixel_shape: tuple[int, int, int]


class ImageRange(Frozen):
    """What the flow's data become: grey or colour images (through the decoder, where there is one), or bare latents."""

    mode: Literal["L", "RGB", "latent"] = "RGB"


def _class_count(model: ModelConfig) -> tuple[str, int]:
    """The field of a model that says how many classes it knows, and the number."""
    if isinstance(model, StarflowConfig):
        return "txt_dim (classes + 1)", model.txt_dim - 1
    return "num_classes", getattr(model, "num_classes", 0)


class CheckpointConfig(Frozen):
    """`config.json` of a checkpoint folder."""

    format_version: Literal[1] = 1
    model: ModelConfig
    conditioning: Conditioning = Conditioning()
    latent: LatentScaling = LatentScaling()
    noise_std: float = Field(0.0, ge=0)  # standard deviation of the noise added to the data in training
    image: ImageRange = ImageRange()
    text: TextEncoding | None = None
    autoencoder: LatentAutoencoder | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "CheckpointConfig":
        conditioning, model = self.conditioning, self.model
        if conditioning.kind == "class":
            field, expected = _class_count(model)
            if conditioning.num_classes != expected:
                raise ValueError(f"conditioning.num_classes {conditioning.num_classes} does not fit model.{field}")
            names = conditioning.class_names
            if names is not None and len(names) != conditioning.num_classes:
                raise ValueError(f"{len(names)} class_names for {conditioning.num_classes} classes")
        return self
