"""Random changes that leave an image what it is: it is moved a little, or mirrored."""

import torch
from torch import Tensor


def mirror_images(values: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    """Put the mirror image, from `mirrored`, in the place of every other image of [B, C, H, W], drawn at random."""
    chosen = torch.rand(len(values), generator=generator, device=values.device) < 0.5
    return torch.where(chosen[:, None, None, None], mirrored, values)


def shift_images(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, H, W] by up to `most` pixels along both axes, repeating its border."""
    count, _, height, width = pixels.shape
    moves = torch.randint(-most, most + 1, (2, count, 1), generator=generator, device=pixels.device)
    rows = (torch.arange(height, device=pixels.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + moves[1]).clamp(0, width - 1)
    image = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
