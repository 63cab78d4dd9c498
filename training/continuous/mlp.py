"""A multilayer perceptron: the velocity field of points in few dimensions.

The forward pass, and the parameters it reads. Batch B, width W = `channels`:

    h = silu(proj_in(x) + time_embed.2(silu(time_embed.0(time_features(t)))))   [B, W]
    h = silu(layers.i(h)) for each hidden layer i                               [B, W]
    v = proj_out(h)                                                             [B, dimensions]
"""

from torch import Tensor, nn
from torch.nn import functional

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.config import ContinuousMlpConfig
from starflow.training.continuous.model import ContinuousFlow, TimeEmbedding, time_features


class ContinuousMlp(ContinuousFlow):
    """v(x, t) of points [B, dimensions]; the module's docstring has the forward pass, line by line."""

    config: ContinuousMlpConfig

    def __init__(self, config: ContinuousMlpConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.dimensions, config.channels)
        self.time_embed = TimeEmbedding(config.channels)
        self.layers = nn.ModuleList(nn.Linear(config.channels, config.channels) for _ in range(config.layers))
        self.proj_out = nn.Linear(config.channels, config.dimensions)

    def noise_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return (batch, self.config.dimensions)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.config.dimensions:
            raise UsageError(f"data of shape {tuple(x.shape)} does not fit [B, {self.config.dimensions}]")
        if y is not None:
            raise UsageError("this model is unconditional; it takes no condition")
        h = functional.silu(self.proj_in(x) + self.time_embed(time_features(t)))
        for layer in self.layers:
            h = functional.silu(layer(h))
        v: Tensor = self.proj_out(h)
        return v.float()
