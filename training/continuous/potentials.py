"""Potentials that give Gibbs weights back their marginals: the dual of entropic transport, learned from batches.

With weights w(x0, x1) = exp(f(x0) + g(x1) - c(x0, x1) / epsilon) on independent pairs, q(x0) q(x1) w is the entropic transport
plan if both of its marginals are q, that is if f and g maximise

    E[f + g] - E exp(f + g - c / epsilon)

over independent pairs (Genevay et al., NeurIPS 2016, eq. 3, in units of epsilon). A constant added to f can always be
maximised out, which leaves E[f + g] - log E exp(f + g - c / epsilon): no exponential overflows, and the mean weight, which the
constant decides, is divided out anyway. All pairs of a batch count, not only its own.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

WIDTH = 64  # of both hidden layers
LEARNING_RATE = 1e-3


class Potential(nn.Sequential):
    """A function of noise or of data: [B, d] -> [B, 1]. It begins as zero, and has no constant."""

    def __init__(self, dimensions: int) -> None:
        super().__init__(
            nn.Linear(dimensions, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1, bias=False)
        )
        for parameter in self[
            -1
        ].parameters():  # a bias would have no gradient, and Adam would make steps of its rounding
            nn.init.zeros_(parameter)


class Potentials:
    """f and g, and their optimiser. `memory` holds all that a resumed run needs, in tensors that are updated in place."""

    def __init__(self, dimensions: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):  # the same potentials whatever was drawn before
            torch.manual_seed(0)
            self.networks = nn.ModuleDict({"noise": Potential(dimensions), "data": Potential(dimensions)}).to(device)
        self.memory: dict[str, Tensor] = {f"potentials.{name}": p.data for name, p in self.networks.named_parameters()}
        for name, parameter in self.networks.named_parameters():
            for moment in ("mean", "square"):
                self.memory[f"potentials.{moment}.{name}"] = torch.zeros_like(parameter)
        self.memory["potentials.updates"] = torch.zeros((), device=device)

    def log_weights(self, x0: Tensor, x1: Tensor) -> Tensor:
        """f(x0) + g(x1) of B pairs, [B] float32; x0 and x1 are [B, ...]."""
        with torch.no_grad():
            f, g = self._values(x0, x1)
            return f + g

    def update(self, x0: Tensor, x1: Tensor, costs: Tensor) -> Tensor:
        """Climb the dual by one step of Adam; returns its value before.

        Args:
            x0: [B, ...] noise.
            x1: [B, ...] data, independent of it.
            costs: [B, B] c / epsilon of all pairs, noise by rows.
        """
        with torch.enable_grad():
            f, g = self._values(x0, x1)
            mass = torch.logsumexp((f[:, None] + g[None] - costs).flatten(), 0) - math.log(costs.numel())
            value = f.mean() + g.mean() - mass
            gradients = torch.autograd.grad(-value, list(self.networks.parameters()))
        self._adam(gradients)
        return value.detach()

    @torch.no_grad()
    def _adam(self, gradients: tuple[Tensor, ...], betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Adam (Kingma and Ba, ICLR 2015, algorithm 1), whose state is in `memory` like everything a resumed run needs."""
        updates = self.memory["potentials.updates"]
        updates += 1
        for (name, parameter), gradient in zip(self.networks.named_parameters(), gradients, strict=True):
            mean, square = (self.memory[f"potentials.{moment}.{name}"] for moment in ("mean", "square"))
            mean.lerp_(gradient, 1 - betas[0])
            square.lerp_(gradient.square(), 1 - betas[1])
            corrected, scale = mean / (1 - betas[0] ** updates), (square / (1 - betas[1] ** updates)).sqrt()
            parameter.addcdiv_(corrected, scale + 1e-8, value=-LEARNING_RATE)

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        """Take up the state of a run that was stopped."""
        for name, value in self.memory.items():
            value.copy_(memory[name])

    def _values(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        return self.networks["noise"](x0.flatten(1).float())[:, 0], self.networks["data"](x1.flatten(1).float())[:, 0]
