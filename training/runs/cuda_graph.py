"""A forward pass and its gradient as CUDA graphs: two launches in place of the thousands that a small model waits for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Pass(NamedTuple):
    """What a step reads of an autoregressive flow's output (see `FlowOutput`)."""

    loss: Tensor
    z: Tensor


class _TensorsAlone(nn.Module):
    """A model that returns nothing but tensors, as a graph has to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.model(*inputs)
        return out if isinstance(out, Tensor) else (out.loss, out.z.detach())


class RecordedPass:
    """A model's forward pass in training, recorded together with its gradient at the first call.

    Every call has inputs of the same shapes, its gradient is taken before the next call, and what it returned is overwritten by
    that. Weights may change in place. Dropout draws anew in every call, from torch's own generator.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = _TensorsAlone(model)
        self._graphs: Callable[..., Any] | None = None

    def __call__(self, *inputs: Tensor | None) -> Any:
        """Run the model, under autocast without a cache. Inputs that are None come last and are left out."""
        given = tuple(value for value in inputs if value is not None)
        if self._graphs is None:
            sample = tuple(value.clone() for value in given)  # the graphs keep them and copy later inputs there
            with torch.random.fork_rng([given[0].device]):  # recording draws as well, and a resumed run records anew
                self._graphs = torch.cuda.make_graphed_callables(self._model, sample, allow_unused_input=True)
        out: Any = self._graphs(*given)
        return out if isinstance(out, Tensor) else Pass(*out)
