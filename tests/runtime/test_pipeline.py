"""The call of Diffusers: the same images as the sampler's, in the forms that its users expect."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from starflow.runtime import Sampler, StarflowPipeline
from starflow.runtime.plain.errors import UsageError


def test_images_are_those_of_the_sampler(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        expected = sampler.sample([3, 3, 5, 5], guidance=1.5, seed=7)
        latents = sampler.generate(sampler.noise(4, 7), [3, 3, 5, 5], guidance=1.5)
        own = sampler.sample([3, 5], seed=[8, 9])
        null = sampler.sample(seed=0)
    with StarflowPipeline.from_pretrained(tiny_bundle, threads=1) as pipe:
        options: dict[str, Any] = {"num_images_per_prompt": 2, "guidance_scale": 2.5}
        pictures = pipe([3, 5], generator=torch.Generator().manual_seed(7), **options).images
        assert all(isinstance(picture, Image.Image) and picture.mode == "L" for picture in pictures)
        assert np.array_equal([np.asarray(picture) for picture in pictures], expected[..., 0])
        array = pipe(["3", "5"], generator=7, output_type="np", **options).images
        assert array.dtype == np.float32 and np.array_equal(np.rint(array * 255).astype(np.uint8), expected)
        assert np.array_equal(pipe([3, 5], generator=7, output_type="latent", **options).images, latents)
        assert np.array_equal(np.stack(list(pipe([3, 5], generator=[8, 9]).images)), own[..., 0])
        assert np.array_equal(np.asarray(pipe().images[0]), null[0, :, :, 0])


def test_steps_are_reported_and_cancel(captioned_bundle: Path) -> None:
    steps: list[tuple[int, int, tuple[int, ...]]] = []

    def on_step(pipe: StarflowPipeline, step: int, block: int, given: dict) -> dict:
        steps.append((step, block, given["latents"].shape))
        return given

    with StarflowPipeline.from_pretrained(captioned_bundle, threads=1) as pipe:
        pipe("a cat", callback_on_step_end=on_step)
        blocks = len(pipe.sampler.bundle.autoregressive.blocks)
        assert [(step, block) for step, block, _ in steps] == [(i + 1, blocks - 1 - i) for i in range(blocks)]
        with pytest.raises(ZeroDivisionError):
            pipe("a cat", callback_on_step_end=lambda *_: {"never": 1 / 0})
        for wrong, message in (
            ({"output_type": "pt"}, "output_type 'pt'"),
            ({"guidance_scale": 0.5}, "guidance_scale 0.5"),
            ({"num_images_per_prompt": 0}, "num_images_per_prompt 0"),
            ({"generator": -1}, "seed -1"),
        ):
            with pytest.raises(UsageError, match=message):
                pipe("a cat", **wrong)
