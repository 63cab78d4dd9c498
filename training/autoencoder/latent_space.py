"""Where a latent flow's data come from and go to."""

from dataclasses import dataclass

from torch import Tensor

from starflow.training.autoencoder.folder import AutoencoderFolder
from starflow.training.config import LatentScaling


@dataclass(frozen=True)
class LatentSpace:
    """An autoencoder, and the scale a flow sees its latents at.

    Attributes:
        source: The autoencoder.
        pixel_shape: [C, H, W] of the images.
        scaling: What the flow sees is (latent - shift) * scale.
        key: Digest of autoencoder and images.
    """

    source: AutoencoderFolder
    pixel_shape: tuple[int, int, int]
    scaling: LatentScaling
    key: str

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents to the flow's data, float32."""
        return (latents.float() - self.scaling.shift) * self.scaling.scale

    def decode(self, data: Tensor) -> Tensor:
        """The flow's data [B, c, h, w] to pixels in [-1, 1], by the decoder for noisy latents where there is one."""
        autoencoder = (self.source.noisy or self.source.autoencoder).to(data.device)
        return autoencoder.decode(data.float() / self.scaling.scale + self.scaling.shift)
