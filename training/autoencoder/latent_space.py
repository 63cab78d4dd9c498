"""The latent space that a flow works in."""

from dataclasses import dataclass

from torch import Tensor

from starflow.training.autoencoder.folder import AutoencoderFolder
from starflow.training.config import LatentScaling


@dataclass(frozen=True)
class LatentSpace:
    """An autoencoder, and the scale at which a flow sees its latents: (latent - shift) * scale."""

    source: AutoencoderFolder
    pixel_shape: tuple[int, int, int]  # [C, H, W] of the images
    scaling: LatentScaling
    key: str  # digest of autoencoder and images

    def scaled(self, latents: Tensor) -> Tensor:
        """Turn latents into the flow's data, float32."""
        return (latents.float() - self.scaling.shift) * self.scaling.scale

    def decode(self, data: Tensor) -> Tensor:
        """Turn the flow's data [B, c, h, w] into pixels in [-1, 1], by the decoder for noisy latents if there is one."""
        autoencoder = (self.source.noisy or self.source.autoencoder).to(data.device)
        return autoencoder.decode(data.float() / self.scaling.scale + self.scaling.shift)
