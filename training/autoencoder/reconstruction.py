"""How far a reconstruction is from its image."""

import torch
from torch import Tensor
from torch.nn import functional

from starflow.training.autoencoder.config import ReconstructionConfig


def reconstruction_loss(found: Tensor, wanted: Tensor, config: ReconstructionConfig) -> Tensor:
    """Mean distance of pixels and, weighted, of the differences between neighbours, averaged over scales.

    Both images are [B, C, H, W] in [-1, 1]; each scale halves the one before.
    """
    distance = functional.l1_loss if config.distance == "l1" else functional.mse_loss
    total = torch.zeros((), device=found.device)
    for scale in range(config.scales):
        if scale:
            found, wanted = functional.avg_pool2d(found, 2), functional.avg_pool2d(wanted, 2)
        total = total + distance(found, wanted)
        for axis in (2, 3):
            if config.gradient and found.shape[axis] > 1:
                total = total + config.gradient / 2 * distance(found.diff(dim=axis), wanted.diff(dim=axis))
    return total / config.scales


def psnr(found: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every image [B, C, H, W] in [-1, 1], in dB; values beyond the range are cut. [B]."""
    error = (found.clamp(-1, 1) - wanted).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))
