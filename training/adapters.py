"""Low-rank adapters: LoRA (Hu et al., 2021, arXiv:2106.09685) by Hugging Face's `peft`, and their weights merged again."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.transformer import ModulatedLayer
from starflow.training.layers.transformer import Layer
from starflow.training.start import AdapterConfig

NAME, BASE = "default", ".base_layer."  # as peft calls the one adapter of a map, and the map that it is beside


@cache
def _peft() -> ModuleType:
    try:
        import peft
    except ModuleNotFoundError:
        raise UsageError("start.adapters needs peft; install it: pip install 'starflow-compiler[adapters]'") from None
    return peft


def add_adapters(flow: nn.Module, config: AdapterConfig) -> None:
    """Give every linear map in the layers of a flow an adapter, which alone learns. It changes nothing at first."""
    peft = _peft()
    targets = [
        f"{name}.{inner}"
        for name, layer in flow.named_modules()
        if isinstance(layer, (Layer, ModulatedLayer))
        for inner, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets, bias="none"
    )
    peft.inject_adapter_in_model(lora, flow, adapter_name=NAME)


@torch.no_grad()
def merged_state(flow: nn.Module) -> dict[str, Tensor]:
    """The state dict of a flow as if it had no adapters: each is added to the map that it is beside."""
    state = {name.replace(BASE, "."): value for name, value in flow.state_dict().items() if ".lora_" not in name}
    for name, module in flow.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight(NAME)
    return state
