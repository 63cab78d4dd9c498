"""Typed configuration of a continuous flow's velocity network.

Both networks carry the family `continuous-flow`; `network` says which one it is. A flow moves noise x0 ~ N(0, I) at t = 0
to data x1 at t = 1 along dx/dt = v(x, t, condition).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from starflow.training.frozen import Frozen
from starflow.training.layers.layer_config import LayerConfig, head_dim_problem


class VelocityTransformerConfig(Frozen):
    """Diffusion transformer (Peebles and Xie, ICCV 2023) with rotary positions, for images."""

    family: Literal["continuous-flow"] = "continuous-flow"
    network: Literal["transformer"] = "transformer"
    in_channels: int = Field(gt=0)
    img_size: int = Field(gt=0)
    patch_size: int = Field(1, gt=0)
    channels: int = Field(gt=0)
    layers: int = Field(gt=0)
    head_dim: int = Field(64, gt=0)
    num_classes: int = Field(0, ge=0)  # classes, without the null class; 0: not conditioned on classes
    txt_size: int = Field(0, ge=0)  # text tokens; 0: not conditioned on text
    txt_dim: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "VelocityTransformerConfig":
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        if self.channels % self.head_dim:
            raise ValueError(f"channels {self.channels} is not a multiple of head_dim {self.head_dim}")
        if bool(self.txt_size) != bool(self.txt_dim):
            raise ValueError("txt_size and txt_dim belong together; name both or neither")
        if self.txt_size and self.num_classes:
            raise ValueError("a model is conditioned on num_classes or on txt_size, not on both")
        if problem := head_dim_problem(self.head_dim, text_model=self.txt_size > 0):
            raise ValueError(problem)
        return self

    @property
    def token_dim(self) -> int:
        """Width D of a token (patch vector)."""
        return self.in_channels * self.patch_size**2

    @property
    def layer(self) -> LayerConfig:
        """Each of the transformer's layers."""
        heads = self.channels // self.head_dim
        return LayerConfig(
            channels=self.channels,
            heads=heads,
            kv_heads=heads,
            head_dim=self.head_dim,
            hidden=4 * self.channels,
            norm="rms_norm",
            gated_mlp=False,
            qk_norm=False,
            post_norm=False,
            bias=True,
            half_rotation=False,
            causal=False,
        )


class VelocityMlpConfig(Frozen):
    """A multilayer perceptron, for points in few dimensions; unconditional."""

    family: Literal["continuous-flow"] = "continuous-flow"
    network: Literal["mlp"] = "mlp"
    dimensions: int = Field(gt=0)
    channels: int = Field(gt=0)
    layers: int = Field(gt=0)  # hidden layers behind the first one


VelocityConfig = Annotated[VelocityTransformerConfig | VelocityMlpConfig, Field(discriminator="network")]
