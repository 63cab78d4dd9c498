"""Do a model's activations fit into float16? What the checks of both families share.

The PyTorch model runs in float32, on samples it draws or on data that is given, before a 16-bit variant is written. Every
tensor that enters or leaves one of its modules is looked at: all that fp16 graphs keep in 16 bits is among these. (Attention
logits are not; kernels accumulate them in float32.) bfloat16 has float32's range and needs no check.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from starflow.export.onnx_graph.network_weights import Tensors
from starflow.runtime.plain.errors import ExportError
from starflow.runtime.plain.input_files import load_data
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.layers.transformer import Layer

FLOAT16_MAX = 65504.0
MARGIN = 2.0  # the check sees one sample, not all


@dataclass(frozen=True)
class ActivationData:
    """Data to look at in place of samples drawn from the model."""

    x: Tensor  # [N, C, H, W] float32, scaled as the model was trained
    # Features [N, m, width] float32; class ids [N] int64, the number of classes being the null class; or None.
    condition: Tensor | None


def load_activation_data(path: Path) -> ActivationData:
    """Read `x` and, where there is one, `condition` from an .npz file.

    Raises:
        UsageError: there is no such file, or its arrays are not finite numbers.
    """
    x, condition = load_data(path)
    if condition is not None:
        condition = condition.astype(np.int64 if condition.dtype.kind in "iu" else np.float32)
    return ActivationData(
        x=torch.from_numpy(x.astype(np.float32)),
        condition=None if condition is None else torch.from_numpy(condition),
    )


def peaks_of(
    model: nn.Module, tensors: Tensors, layers: Iterable[tuple[str, nn.Module]], run: Callable[[], object]
) -> dict[str, float]:
    """Largest magnitude that enters or leaves some modules, by the names they are given with; NaN counts as infinite.

    The model is on the meta device and has its weights, `tensors`, only while `run` runs it.
    """
    peaks: dict[str, float] = {}

    def note(name: str, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        peak = max(float(value.abs().amax()) for value in (arguments[0], output))
        peaks[name] = max(math.inf if math.isnan(peak) else peak, peaks.get(name, 0.0))

    with ExitStack() as stack:
        stack.enter_context(streamed(model, tensors))
        for name, module in layers:
            stack.callback(module.register_forward_hook(partial(note, name)).remove)
        with torch.no_grad():
            run()
    return peaks


def layers_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module inside another one, with the name of the layer it belongs to."""
    for name, part in module.named_modules():
        if name and not isinstance(part, nn.ModuleList):
            depth = 2 if name.startswith(("attn_blocks.", "layers.")) else 1
            yield prefix + ".".join(name.split(".")[:depth]), part


def drawn_conditions(
    config: CheckpointConfig, model: AutoregressiveFlow | ContinuousFlow, count: int, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """Conditions of some images, and the null condition: classes in turn, or standard normal features and zeros."""
    tokens, width = (getattr(model.config, name, 0) for name in ("txt_size", "txt_dim"))
    if tokens and config.conditioning.kind != "class":
        return torch.randn((count, tokens, width), generator=generator), torch.zeros(1, tokens, width)
    if not model.num_classes:
        return None, None
    labels = torch.arange(count) % model.num_classes
    return model.encode_labels(labels), model.encode_labels(torch.full((1,), model.num_classes))


def refuse_overflow(peaks: dict[str, float]) -> None:
    """Raise ExportError if an activation is not finite, or comes within a factor of two of float16's end."""
    for name, peak in peaks.items():
        if not peak * MARGIN <= FLOAT16_MAX:
            raise ExportError(
                f"activations of {name} reach {peak:.4g}; float16 ends at {FLOAT16_MAX:.0f}, half of which is kept free: "
                "use --precision bf16 or fp32"
            )


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
