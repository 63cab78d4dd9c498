"""The sections of a recipe for an autoencoder: its network, its objective, and its decoder for noisy latents.

Fields of the networks have the names of diffusers' configurations.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from starflow.training.frozen import Frozen

# The largest sizes an autoencoder may have; published ones have 4 stages of 2 layers and up to 512 channels.
MOST_CHANNELS, MOST_STAGES, MOST_STAGE_LAYERS = 1 << 14, 12, 64

Widths = Annotated[
    tuple[Annotated[int, Field(gt=0, le=MOST_CHANNELS)], ...], Field(min_length=1, max_length=MOST_STAGES)
]
Blocks = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MOST_STAGE_LAYERS)], ...], Field(min_length=1, max_length=MOST_STAGES)
]


class TinyConfig(Frozen):
    """diffusers' AutoencoderTiny: plain residual convolutions and a deterministic encoder, made to be fast."""

    kind: Literal["tiny"]
    latent_channels: int = Field(4, gt=0, le=MOST_CHANNELS)
    encoder_block_out_channels: Widths = (64, 64, 64, 64)  # one width; all must be equal
    decoder_block_out_channels: Widths = (64, 64, 64, 64)
    num_encoder_blocks: Blocks = (1, 3, 3, 3)  # from pixels down; each stage but the first halves the side
    num_decoder_blocks: Blocks = (3, 3, 3, 1)  # from latents up
    act_fn: Literal["relu", "silu", "gelu"] = "relu"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for side in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{side}_block_out_channels"), getattr(self, f"num_{side}_blocks")
            if len(widths) != len(blocks) or len(set(widths)) != 1:
                raise ValueError(
                    f"{side}_block_out_channels {widths} must be one width for each of {len(blocks)} stages"
                )
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise ValueError("num_encoder_blocks and num_decoder_blocks must have as many stages")
        return self

    def settings(self, pixel_channels: int) -> dict[str, Any]:
        """Arguments of diffusers' class."""
        return {"in_channels": pixel_channels, "out_channels": pixel_channels, **self.model_dump(exclude={"kind"})}


class KlConfig(Frozen):
    """diffusers' AutoencoderKL: the variational autoencoder of latent diffusion (Rombach et al., CVPR 2022)."""

    kind: Literal["kl"]
    latent_channels: int = Field(4, gt=0, le=MOST_CHANNELS)
    block_out_channels: Widths = (32, 64, 64, 64)  # from pixels down; each but the last halves the side
    layers_per_block: int = Field(1, gt=0, le=MOST_STAGE_LAYERS)
    norm_num_groups: int = Field(8, gt=0, le=MOST_CHANNELS)
    act_fn: Literal["relu", "silu", "gelu"] = "silu"
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {width} is not a multiple of norm_num_groups {self.norm_num_groups}"
                )
        return self

    def settings(self, pixel_channels: int) -> dict[str, Any]:
        """Arguments of diffusers' class."""
        stages = len(self.block_out_channels)
        return {
            "in_channels": pixel_channels,
            "out_channels": pixel_channels,
            "down_block_types": ("DownEncoderBlock2D",) * stages,
            "up_block_types": ("UpDecoderBlock2D",) * stages,
            **self.model_dump(exclude={"kind"}),
        }


AutoencoderConfig = Annotated[TinyConfig | KlConfig, Field(discriminator="kind")]


class ReconstructionConfig(Frozen):
    """How pixels are compared: by their distance and that of their differences, over several scales."""

    distance: Literal["l1", "l2"] = "l1"
    gradient: float = Field(1.0, ge=0)  # weight of differences between neighbours: edges stay sharp
    scales: int = Field(3, gt=0, le=16)  # the image and its halvings that are compared


class AutoencoderObjective(ReconstructionConfig):
    """What training an autoencoder minimises: the reconstruction error, and a term that keeps latents fit for a flow."""

    noise_std: float = Field(0.0, ge=0)  # most noise on latents of standard deviation 1: that of the flow
    kl: float = Field(1e-4, ge=0)  # nats per latent dimension, against a standard normal


class NoisyDecoderConfig(Frozen):
    """A decoder that removes the flow's noise: fine-tuned on noisy latents, with a frozen encoder."""

    autoencoder: Path  # a checkpoint of the first stage, or any diffusers folder
    noise_std: float = Field(gt=0)  # on latents of standard deviation 1: training.noise_std of the flow
