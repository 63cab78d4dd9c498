"""Typed configuration of a continuous flow's network.

Both networks carry the family `continuous-flow`; `network` says which one it is. A flow moves noise x0 ~ N(0, I) at t = 0
to data x1 at t = 1 along dx/dt = v(x, t, condition).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from starflow.training.frozen import Frozen
from starflow.training.layers.image_config import ImageConfig
from starflow.training.layers.layer_config import LayerConfig, head_dim_problem
from starflow.training.layers.model_limits import MOST_CLASSES, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH


class ContinuousTransformerConfig(ImageConfig):
    """Diffusion transformer (Peebles and Xie, ICCV 2023) with rotary positions, for images."""

    family: Literal["continuous-flow"] = "continuous-flow"
    network: Literal["transformer"] = "transformer"
    layers: int = Field(gt=0, le=MOST_LAYERS)
    num_classes: int = Field(0, ge=0, le=MOST_CLASSES)  # classes, without the null class; 0: not conditioned on classes
    txt_size: int = Field(0, ge=0, le=MOST_TOKENS)  # text tokens; 0: not conditioned on text
    txt_dim: int = Field(0, ge=0, le=MOST_WIDTH)

    @model_validator(mode="after")
    def _consistent(self) -> "ContinuousTransformerConfig":
        if self.channels % self.head_dim:
            raise ValueError(f"channels {self.channels} is not a multiple of head_dim {self.head_dim}")
        if bool(self.txt_size) != bool(self.txt_dim):
            raise ValueError("txt_size and txt_dim belong together; give both or neither")
        if self.txt_size and self.num_classes:
            raise ValueError("a model is conditioned on num_classes or on txt_size, not on both")
        if problem := head_dim_problem(self.head_dim, text_model=self.txt_size > 0):
            raise ValueError(problem)
        return self

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
            causal=False,
        )


class ContinuousMlpConfig(Frozen):
    """A multilayer perceptron, for points in few dimensions; unconditional."""

    family: Literal["continuous-flow"] = "continuous-flow"
    network: Literal["mlp"] = "mlp"
    dimensions: int = Field(gt=0, le=MOST_WIDTH)
    channels: int = Field(gt=0, le=MOST_WIDTH)
    layers: int = Field(gt=0, le=MOST_LAYERS)  # hidden layers after the first one


ContinuousConfig = Annotated[ContinuousTransformerConfig | ContinuousMlpConfig, Field(discriminator="network")]
