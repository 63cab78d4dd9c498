"""The best plain PyTorch can do with a step on a GPU: compiled, and captured as one CUDA graph that feeds itself.

Nothing crosses to the host between two tokens: position, noise and samples lie on the device, as ours do. Compiling and prefill
are not counted.
"""

import torch
from benchmarks.static_torch import StaticStep
from torch import Tensor, nn

from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow

WARM_UP = 3  # launches before a capture, which must not compile or allocate


class FedStep(nn.Module):
    """A step that reads its noise by position, writes its sample, and prepares the next one.

    Args:
        step: The step, on a GPU.
        noise: [B, T, D] in block order.
    """

    def __init__(self, step: StaticStep, noise: Tensor) -> None:
        super().__init__()
        self.step, self.noise = step, noise
        self.samples, self.previous = torch.zeros_like(noise), torch.zeros_like(noise[:, :1])
        self.token = torch.zeros(1, dtype=torch.int64, device=noise.device)

    def forward(self) -> None:
        """Decode the next token."""
        z = self.noise.index_select(1, self.token)
        x = self.step(self.previous, z, self.token + self.step.prefix)
        self.samples.index_copy_(1, self.token, x)
        self.previous.copy_(x)
        self.token.add_(1)


class CapturedStep:
    """A compiled step as a CUDA graph.

    Args:
        mode: Of `torch.compile`, without CUDA graphs of its own.
        tokens: [B, T, D], the noise; `condition` [2B, prefix, width].
    """

    def __init__(self, model: AutoregressiveFlow, tokens: Tensor, condition: Tensor, weight: float, mode: str) -> None:
        block = model.blocks[-1]
        assert isinstance(block, FlowBlock)
        batch, self.tokens = tokens.shape[:2]
        step = StaticStep(model, block, batch, condition.shape[1], weight)
        self._fed = FedStep(step, tokens)
        compiled = torch.compile(self._fed, mode=mode, dynamic=False)
        with torch.inference_mode():
            step.prefill(condition)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    compiled()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                compiled()

    def decode(self) -> Tensor:
        """Decode all tokens and wait for them; the samples [B, T, D]."""
        with torch.inference_mode():
            self._fed.token.zero_()
            for _ in range(self.tokens):
                self._graph.replay()
            torch.cuda.synchronize()
        return self._fed.samples
