"""What a student is: the flow block it stands for, its network, and the teacher it learned from."""

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from starflow.training.autoregressive.config import AutoregressiveConfig, BlockConfig, block_configs
from starflow.training.config import Conditioning
from starflow.training.frozen import Frozen
from starflow.training.layers.model_limits import MOST_BLOCKS, MOST_LAYERS

MOST_STAGES = 16
Weight = Annotated[float, Field(ge=0, le=1000)]


def _ordered(weights: tuple[float, float]) -> tuple[float, float]:
    if weights[0] > weights[1]:
        raise ValueError(f"found {list(weights)}, expected the smaller weight first")
    return weights


GuidanceRange = Annotated[tuple[Weight, Weight], AfterValidator(_ordered)]  # least and largest weight


class StudentConfig(Frozen):
    """`config.json` of a student's folder.

    A student is a chain of stages. Each is a flow block run the other way round: an affine transform of every token whose scale and
    shift depend on the tokens *before* the transform, so that all tokens are made in one pass (an inverse autoregressive flow; Kingma
    et al., NeurIPS 2016).
    """

    format_version: Literal[1] = 1
    model: Annotated[AutoregressiveConfig, Field(discriminator="family")]  # the teacher
    conditioning: Conditioning  # of the teacher
    teacher: str = Field(pattern=r"^[0-9a-f]{64}$")  # SHA-256 of its model.safetensors
    block: int = Field(ge=0, le=MOST_BLOCKS)  # the flow block that the student stands for
    layers: int = Field(gt=0, le=MOST_LAYERS)  # of each stage
    stages: int = Field(1, gt=0, le=MOST_STAGES)
    guidance: GuidanceRange = (0.0, 0.0)  # that it was trained for

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.block >= self.model.num_blocks:
            raise ValueError(f"block: found {self.block}, expected one of {self.model.num_blocks} flow blocks")
        if not block_configs(self.model)[self.block].layers:
            raise ValueError(f"block: flow block {self.block} has no network, so there is nothing to learn")
        return self

    @property
    def middle_guidance(self) -> float:
        """The weight that a student is shown and measured at."""
        return sum(self.guidance) / 2

    @property
    def of_teacher(self) -> BlockConfig:
        """The flow block of the teacher."""
        return block_configs(self.model)[self.block]

    @property
    def of_stage(self) -> BlockConfig:
        """The flow block that a stage is."""
        return replace(self.of_teacher, layers=self.layers)


class StudentObjective(Frozen):
    """What a student minimises.

    First the squared error of its tokens against those of the exact sampler from the same noise, and the negative log-likelihood of
    these tokens given the noise before each. The error alone rewards the mean of all that could be; the likelihood keeps the variance
    that the student cannot tell from the noise. Beside them its hidden states are drawn to the teacher's (see `Made.misalignment`).
    For a shallow block, from `density_from` on, comes the divergence KL(student || teacher) of the tokens, whose two densities are
    known: the student's own, and the guided block's (probability density distillation; van den Oord et al., ICML 2018). It tells the
    student where the data hardly vary. For the deep block it would double the time of a step and change little.
    """

    pairs: float = Field(1.0, ge=0)  # weight of the squared error
    likelihood: float = Field(0.3, ge=0)  # weight of -log q(x_t | z_<t) of the pairs' tokens, in nats per value
    hidden: float = Field(
        1.0, ge=0
    )  # weight of the relative squared distance of hidden states; not a part of what is judged
    # Weight of the divergence, in nats per value. None: 0.3 for a shallow block, 0 for the deep one.
    density: float | None = Field(None, ge=0)
    density_from: int = Field(100, ge=0)  # step

    def density_of(self, *, deep: bool) -> float:
        """Weight of the divergence for the deep block, or for a shallow one."""
        if self.density is not None:
            return self.density
        return 0.0 if deep else 0.3


class StudentOptions(Frozen):
    """The section `student` of a distillation's recipe."""

    block: int | None = Field(None, ge=0, le=MOST_BLOCKS)  # the flow block to learn; None: the deep one
    layers: int | None = Field(None, gt=0, le=MOST_LAYERS)  # of each stage; None: as many as the teacher's block
    stages: int = Field(1, gt=0, le=MOST_STAGES)
    guidance: GuidanceRange = (0.0, 3.0)  # that it learns
    pairs: int = Field(8192, ge=8)  # drawn from the exact sampler; an eighth each is held out for validation and test
