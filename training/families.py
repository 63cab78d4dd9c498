"""The one place that knows the families: which flow and which objective a configuration asks for."""

from typing import Any, overload

from starflow.training.autoregressive.config import AutoregressiveConfig, StarflowConfig, TarflowConfig
from starflow.training.autoregressive.maximum_likelihood import MaximumLikelihood
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow
from starflow.training.autoregressive.tarflow import Tarflow
from starflow.training.config import ModelConfig
from starflow.training.continuous.config import ContinuousConfig, ContinuousMlpConfig, ContinuousTransformerConfig
from starflow.training.continuous.flow_matching import FlowMatching
from starflow.training.continuous.mlp import ContinuousMlp
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.continuous.objective_config import ObjectiveConfig
from starflow.training.continuous.transformer import ContinuousTransformer
from starflow.training.flow import Flow
from starflow.training.objective import Objective

FLOWS: dict[type, type[Flow]] = {
    StarflowConfig: Starflow,
    TarflowConfig: Tarflow,
    ContinuousTransformerConfig: ContinuousTransformer,
    ContinuousMlpConfig: ContinuousMlp,
}


@overload
def build_flow(config: AutoregressiveConfig) -> AutoregressiveFlow: ...
@overload
def build_flow(config: ContinuousConfig) -> ContinuousFlow: ...
def build_flow(config: ModelConfig) -> Flow:
    """The model of a configuration, freshly initialised."""
    return FLOWS[type(config)](config)


def build_objective(config: ObjectiveConfig | None, flow: Flow) -> Objective[Any]:
    """What training a flow minimises; `config` is the recipe's section, which only a continuous flow has."""
    if isinstance(flow, AutoregressiveFlow):
        return MaximumLikelihood(flow)
    assert config is not None  # the recipe has checked it
    return FlowMatching(config)
