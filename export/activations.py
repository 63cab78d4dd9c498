"""Do a model's activations fit into float16? What the checks of both families share.

The PyTorch model runs in float32, on samples it draws or on data that is given, before a 16-bit variant is written. Every
tensor that enters or leaves one of its modules is looked at: all that fp16 graphs keep in 16 bits is among these. (Attention
logits are not; kernels accumulate them in float32.) bfloat16 has float32's range and needs no check.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from starflow.export.streamed_model import Tensors, streamed
from starflow.runtime.plain.errors import ExportError
from starflow.runtime.plain.input_files import load_data

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


def refuse_overflow(peaks: dict[str, float]) -> None:
    """Stop an export to float16 that would overflow.

    Raises:
        ExportError: an activation is not finite, or comes within a factor of two of float16's end.
    """
    for name, peak in peaks.items():
        if not peak * MARGIN <= FLOAT16_MAX:
            raise ExportError(
                f"activations of {name} reach {peak:.4g}; float16 ends at {FLOAT16_MAX:.0f}, half of which is kept free: "
                "use --precision bf16 or fp32"
            )
