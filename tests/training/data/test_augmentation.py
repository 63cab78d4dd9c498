"""Random changes of images, against closed forms."""

import torch
from torch import nn

from starflow.training.data.augmentation import (
    LUMA,
    Augmentation,
    crop_images,
    mirror_images,
    recolour_images,
    shift_images,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_shift_moves_whole_images_and_repeats_the_border() -> None:
    image = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5)
    moved = shift_images(image.expand(200, 1, 5, 5), 1, generator())
    padded = nn.functional.pad(image.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)[0, 0]
    expected = {tuple(padded[r : r + 5, c : c + 5].flatten().tolist()) for r in range(3) for c in range(3)}
    assert {tuple(sample.flatten().tolist()) for sample in moved} == expected


def test_every_other_image_is_mirrored() -> None:
    image = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3)
    found = mirror_images(image.expand(1000, 1, 2, 3), generator())
    mirrored = (found == image.flip(3)).flatten(1).all(1)
    assert (mirrored | (found == image).flatten(1).all(1)).all()
    assert 440 < int(mirrored.sum()) < 560


def test_a_crop_of_a_ramp_is_a_flatter_ramp_inside_it() -> None:
    """Along each axis the crop of 2 x + 3 y is a ramp whose slope is the side of the crop times that of the image."""
    size = 32
    ramp = 2.0 * torch.arange(size)[None, :] + 3.0 * torch.arange(size)[:, None]
    found = crop_images(ramp.to(torch.uint8).expand(300, 1, size, size), 0.25, generator())[:, 0].float()
    inside = found[:, 8:-8, 8:-8]  # where no neighbour is missing
    across = (inside[:, :, -1] - inside[:, :, 0]).mean(1) / (inside.shape[2] - 1) / 2
    down = (inside[:, -1] - inside[:, 0]).mean(1) / (inside.shape[1] - 1) / 3
    torch.testing.assert_close(across, down, atol=0.03, rtol=0)
    area = across.square()
    assert 0.24 < float(area.min()) < 0.3 and 0.93 < float(area.max()) < 1.02
    assert abs(float(area.mean()) - (0.25 + 1) / 2) < 0.05
    centres = inside.mean((1, 2)) - float(ramp.mean())  # on both sides of the middle
    assert centres.min() < -10 and centres.max() > 10
    assert found.min() >= 0 and found.max() <= ramp.max()


def test_the_whole_image_is_a_crop_too() -> None:
    images = torch.randint(0, 256, (4, 3, 9, 7), generator=generator()).to(torch.uint8)
    assert torch.equal(crop_images(images, 1.0, generator()), images)


def test_colours_change_by_known_factors() -> None:
    images = torch.randint(90, 130, (50, 3, 6, 6), generator=generator()).to(torch.uint8)
    found = recolour_images(images, 0.3, generator()).float()
    brightness, contrast, saturation = (1 + 0.3 * (2 * torch.rand(3, 50, generator=generator()) - 1))[
        :, :, None, None, None
    ]
    weights = torch.tensor(LUMA)[:, None, None]
    grey = (images * weights).sum(1, keepdim=True)
    mean = grey.mean((1, 2, 3), keepdim=True)
    # Brightness scales all of it, contrast what differs from the mean grey, saturation what differs from a pixel's grey.
    expected = brightness * (mean + contrast * (grey - mean) + contrast * saturation * (images - grey))
    torch.testing.assert_close(found, expected.clamp(0, 255), atol=0.51, rtol=0)
    assert float(brightness.min()) < 0.75 and float(brightness.max()) > 1.25


def test_grey_images_stay_grey_and_nothing_changes_without_a_wish() -> None:
    images = torch.randint(0, 256, (8, 1, 6, 6), generator=generator()).to(torch.uint8)
    changed = recolour_images(images, 0.5, generator())
    assert changed.shape == images.shape and changed.dtype == torch.uint8 and not torch.equal(changed, images)
    assert Augmentation()(images, generator()) is images
    assert Augmentation(flip=True).mirrors_only and not Augmentation(flip=True, shift=1).mirrors_only
