"""Random changes of training images, so that a model does not see the same pixels twice."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (Rec. 601)


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image, in this order. The defaults leave it as it is."""

    crop: float = 1.0  # least share of the area that a random square crop keeps
    shift: int = 0  # most pixels that an image moves along both axes
    flip: bool = False  # whether every other image is mirrored left-right
    colour: float = 0.0  # brightness, contrast and saturation are multiplied by 1 - colour to 1 + colour

    @property
    def mirrors_only(self) -> bool:
        """Whether an image has one other view, its mirror image."""
        return self == Augmentation(flip=True)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change images, uint8 [B, C, H, W], each in its own way."""
        if self.crop < 1:
            images = crop_images(images, self.crop, generator)
        if self.shift:
            images = shift_images(images, self.shift, generator)
        if self.flip:
            images = mirror_images(images, generator)
        return recolour_images(images, self.colour, generator) if self.colour else images


def mirror_images(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other image of [B, C, H, W], drawn at random."""
    chosen = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
    return torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)


def shift_images(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, H, W] by up to `most` pixels along both axes, repeating its border."""
    count, _, height, width = pixels.shape
    moves = torch.randint(-most, most + 1, (2, count, 1), generator=generator, device=pixels.device)
    rows = (torch.arange(height, device=pixels.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + moves[1]).clamp(0, width - 1)
    image = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def crop_images(pixels: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """Cut out of each image of [B, C, H, W] a part of its shape, `least` to 1 of its area, and scale it back (bilinear)."""
    area, *centre = torch.rand(3, len(pixels), generator=generator, device=pixels.device)
    side = (least + (1 - least) * area).sqrt()
    # Of a grid over [-1, 1]: the crop has half-width `side` and its centre keeps it inside.
    x, y = ((1 - side) * (2 * place - 1) for place in centre)
    zero = torch.zeros_like(side)
    moves = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)
    grid = functional.affine_grid(moves, list(pixels.shape), align_corners=False)
    found = functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return _pixels(found)


def recolour_images(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and, of colours, saturation of each image of [B, C, H, W]."""
    draws = torch.rand(3, len(pixels), generator=generator, device=pixels.device)
    brightness, contrast, saturation = (1 + strength * (2 * draws - 1))[..., None, None, None]
    images = pixels.float() * brightness
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    if images.shape[1] == 3:
        grey = _grey(images)
        images = grey + saturation * (images - grey)
    return _pixels(images)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
