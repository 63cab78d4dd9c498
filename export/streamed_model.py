"""Run a PyTorch model whose weights do not fit in memory: each transformer layer has them only while it runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from starflow.training.layers.transformer import Layer

Tensors = Mapping[str, Callable[[], NDArray]]


@contextmanager
def streamed(model: nn.Module, tensors: Tensors) -> Iterator[None]:
    """Give a model on the meta device its weights, float32, while the context lasts.

    The model then returns to the meta device. Tensors are read one at a time; the few outside transformer layers stay in memory.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    inside = tuple(f"{name}." for name in layers)
    with ExitStack() as stack:
        stack.callback(model.to, "meta")
        for name in model.state_dict():
            if not name.startswith(inside):
                _assign(model, name, tensors)
        for prefix, layer in layers.items():

            def load(module: nn.Module, arguments: object, prefix: str = prefix) -> None:
                for name in module.state_dict():
                    _assign(model, f"{prefix}.{name}", tensors)

            def release(module: nn.Module, arguments: object, output: object) -> None:
                module.to("meta")

            stack.callback(layer.register_forward_pre_hook(load).remove)
            stack.callback(layer.register_forward_hook(release).remove)
        yield


def _assign(model: nn.Module, name: str, tensors: Tensors) -> None:
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    value: Tensor = torch.from_numpy(tensors[name]().astype(np.float32, copy=False))
    if last in owner._buffers:
        owner._buffers[last] = value
    else:
        owner._parameters[last] = nn.Parameter(value, requires_grad=False)
