"""`StarflowPipeline`: a sampler with the call that users of Diffusers know. It needs neither torch nor Diffusers."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plain.images import picture
from starflow.runtime.sampler import Sampler

# Called with the pipeline, the number of flow blocks done, the index of the block, and {"latents": its output [N, C, H, W]}.
OnStepEnd = Callable[["StarflowPipeline", int, int, dict[str, Any]], dict[str, Any] | None]
Seed = int | Any  # or an object with `initial_seed()`, such as torch.Generator


@dataclass(frozen=True)
class PipelineOutput:
    """What a call made, in the form that `output_type` names."""

    images: Any  # a list of PIL images, or an array


class StarflowPipeline:
    """Samples as a Diffusers pipeline does.

    Example:
        >>> with StarflowPipeline.from_pretrained("emoji.bundle") as pipe:
        ...     image = pipe("red apple, noto style", guidance_scale=3.0, generator=7).images[0]
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler  # which the pipeline owns from now on

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str] | Bundle, **options: Any) -> Self:
        """Open a bundle; see `Sampler.open` for the options and the errors."""
        return cls(Sampler.open(path, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the sampler; a second call does nothing."""
        self.sampler.close()

    def __call__(
        self,
        prompt: str | int | Sequence[str] | Sequence[int] | None = None,
        *,
        num_images_per_prompt: int = 1,
        guidance_scale: float = 1.0,
        generator: Seed | Sequence[Seed] = 0,
        output_type: Literal["pil", "np", "latent"] = "pil",
        callback_on_step_end: OnStepEnd | None = None,
    ) -> PipelineOutput:
        """Sample images.

        Args:
            prompt: A caption or several, or classes (names or numbers); None for an unconditional sample.
            num_images_per_prompt: Number of images for each prompt, one after the other.
            guidance_scale: As in Diffusers, where 1 is no guidance: the weight that `Sampler` takes is this minus 1.
            generator: A seed, or an object with `initial_seed()`; or one for each image, on which it then depends alone.
            output_type: `pil` images; `np`, float32 [N, H, W, C] in [0, 1]; or `latent`, the flow's data, float32 [N, C, H, W].
            callback_on_step_end: Called after each flow block, for every batch. An exception that it raises ends the call.

        Raises:
            UsageError: an argument does not fit the bundle.
            BackendError: a flow block produced NaN or infinity.
        """
        if output_type not in ("pil", "np", "latent"):
            raise UsageError(f"output_type {output_type!r}: choose pil, np or latent")
        if num_images_per_prompt < 1:
            raise UsageError(f"num_images_per_prompt {num_images_per_prompt}: give at least 1")
        if not guidance_scale >= 1:
            raise UsageError(f"guidance_scale {guidance_scale}: give 1 for no guidance, or more")
        prompts = [prompt] if prompt is None or isinstance(prompt, str | int) else list(prompt)
        condition: Any = None if prompt is None else [each for each in prompts for _ in range(num_images_per_prompt)]
        count, done = len(prompts) * num_images_per_prompt, 0

        def on_block(block: int, latents: NDArray) -> None:
            nonlocal done
            done += 1
            if callback_on_step_end:
                callback_on_step_end(self, done, block, {"latents": latents})

        data = self.sampler.generate(
            self.sampler.noise(count, _seeds(generator)),
            condition,
            guidance=Guidance(guidance_scale - 1.0),
            on_block=on_block,
        )
        if output_type == "latent":
            return PipelineOutput(data)
        pixels = self.sampler.to_images(data)
        if output_type == "np":
            return PipelineOutput(pixels.astype(np.float32) / np.float32(255))
        return PipelineOutput([picture(image) for image in pixels])


def _seeds(generator: Seed | Sequence[Seed]) -> int | list[int]:
    if isinstance(generator, Sequence):
        return [_seed(each) for each in generator]
    return _seed(generator)


def _seed(generator: Any) -> int:
    found: int = generator.initial_seed() if hasattr(generator, "initial_seed") else generator
    return found
