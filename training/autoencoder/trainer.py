"""Training an autoencoder, and fine-tuning its decoder on noisy latents."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from starflow.runtime.plain.errors import RecipeError, UsageError
from starflow.runtime.plain.images import grid, to_uint8
from starflow.training.autoencoder.config import ReconstructionConfig
from starflow.training.autoencoder.folder import (
    AutoencoderRecord,
    autoencoder_digest,
    open_autoencoder,
    save_autoencoder,
)
from starflow.training.autoencoder.latents import measured_scaling
from starflow.training.autoencoder.network import DECODER_PARTS, Autoencoder, build_autoencoder
from starflow.training.config import LatentScaling
from starflow.training.data.samples import Batch, Dataset, Samples, to_float
from starflow.training.random_streams import EVALUATION, generator_for
from starflow.training.recipe import AutoencoderRecipe, DecoderRecipe
from starflow.training.runs.run import TrainingRun

MEASURED = 4096  # most images that the scale and shift of latents are measured on
SHOWN = 16  # images on a sheet


class ReconstructionRun(TrainingRun):
    """What both runs share. Their checkpoint is the autoencoder's folder."""

    UNITS: ClassVar = {"psnr": "dB", "noisy_psnr": "dB through noise"}
    CHOSEN_BY: ClassVar = "noisy_psnr"  # what a flow leaves in its samples, the decoder has to remove
    LOWER_IS_BETTER: ClassVar = False
    recipe: AutoencoderRecipe | DecoderRecipe
    model: Autoencoder
    average: Autoencoder

    noise_std: float  # of the noise on scaled latents that the decoder is trained and judged with

    def __init__(
        self, recipe: AutoencoderRecipe | DecoderRecipe, data: Dataset, folder: Path, model: Callable[[], Autoencoder]
    ) -> None:
        if data.kind != "images":
            raise RecipeError(f"data: found {data.kind}, but an autoencoder learns from images")
        channels, height, width = data.train.values.shape[1:]
        self.pixel_shape = (int(channels), int(height), int(width))
        super().__init__(recipe, data.without_conditions(), folder, model)
        try:
            self.latent_shape = self.model.latent_shape(self.pixel_shape)
        except UsageError as error:
            raise RecipeError(str(error)) from None
        if self.device.type == "cuda":  # which makes convolutions faster
            for model in (self.model, self.average):
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub has no such overload

    @abstractmethod
    def scaling(self) -> LatentScaling:
        """The scaling that gives the averaged encoder's latents mean 0 and standard deviation 1."""

    @torch.inference_mode()
    def measured(self, autoencoder: Autoencoder) -> LatentScaling:
        """That scaling, measured on training images."""
        step = max(1, len(self.data.train) // MEASURED)
        parts = self.data.train.values[::step].split(self.part_size)
        return measured_scaling(torch.cat([autoencoder.encode(to_float(part.to(self.device))) for part in parts]))

    @abstractmethod
    def result(self) -> tuple[Autoencoder, Autoencoder | None]:
        """The autoencoder, and the one that holds the decoder for noisy latents, if there is one."""

    def write_checkpoint(self, folder: Path, extra_files: Mapping[str, str]) -> None:
        autoencoder, noisy = self.result()
        std = None if noisy is None else self.noise_std
        record = AutoencoderRecord(pixel_shape=self.pixel_shape, latent=self.scaling(), noisy_decoder_std=std)
        half = self.training.half_checkpoint
        save_autoencoder(folder, autoencoder, record, noisy=noisy, extra_files=extra_files, half=half)

    def pixels(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Augmented images, float32 in [-1, 1]."""
        return to_float(self.training.augmentation(batch.values, generator))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise in the shape of `count` latents."""
        return torch.randn(count, *self.latent_shape, generator=generator, device=self.device)

    @torch.inference_mode()
    def judge(self, samples: Samples) -> dict[str, float]:
        """Mean PSNR of images, decoded from their latents and from latents with the recipe's noise."""
        generator = generator_for(self.training.seed, EVALUATION, 0, self.device)
        scale, plain, noisy = self.scaling().scale, [], []
        for values in samples.values.split(self.part_size):
            images = to_float(values.to(self.device))
            latents = self.average.encode(images)
            noise = self.noise(len(images), generator)
            plain.append(psnr(self.average.decode(latents), images))
            noisy.append(psnr(self.average.decode(latents + self.noise_std / scale * noise), images))
        return {"psnr": float(torch.cat(plain).mean()), "noisy_psnr": float(torch.cat(noisy).mean())}

    @torch.inference_mode()
    def sample_sheet(self) -> NDArray[np.uint8]:
        """Three rows: held-out images, their reconstructions, and those from noisy latents."""
        generator = generator_for(self.training.seed, EVALUATION, 0, self.device)
        every = max(1, len(self.data.test) // SHOWN)
        images = to_float(self.data.test.values[::every][:SHOWN].to(self.device))
        latents = self.average.encode(images)
        noise = self.noise_std / self.scaling().scale * self.noise(len(images), generator)
        rows = [images, self.average.decode(latents), self.average.decode(latents + noise)]
        return grid(to_uint8(torch.cat(rows).float().cpu().numpy()), len(images))


class AutoencoderTrainer(ReconstructionRun):
    """Train an autoencoder: reconstruction through noisy latents, and latents held near a standard normal."""

    recipe: AutoencoderRecipe

    def __init__(self, recipe: AutoencoderRecipe, data: Dataset, folder: Path) -> None:
        channels = data.train.values.shape[1]
        super().__init__(recipe, data, folder, lambda: build_autoencoder(recipe.autoencoder, channels))
        self.noise_std = recipe.objective.noise_std

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        objective = self.recipe.objective
        images, noise = self.pixels(batch, generator), self.noise(len(batch.values), generator)
        # Every level up to noise_std: this decoder will see denoised latents as well as noisy ones.
        noise = noise * torch.rand(len(images), 1, 1, 1, generator=generator, device=self.device)
        self.figures["kl"] = torch.zeros((), device=self.device)
        for part, draw in zip(images.split(self.part_size), noise.split(self.part_size), strict=True):
            reconstruction, kl = self.forward(part, draw, objective.noise_std)
            self.figures["kl"] += kl.detach() / self.training.accumulate
            yield reconstruction_loss(reconstruction, part, objective) + objective.kl * kl

    def scaling(self) -> LatentScaling:
        return self.measured(self.average)

    def result(self) -> tuple[Autoencoder, Autoencoder | None]:
        return self.average, None


class DecoderTrainer(ReconstructionRun):
    """Fine-tune a decoder on latents with the noise that a flow leaves in its samples; the encoder stays as it is.

    STARFlow does this in place of denoising (Gu et al., NeurIPS 2025, section 3.4): the decoder learns E[pixels | noisy latents],
    or their median with `distance: l1`.
    """

    recipe: DecoderRecipe

    def __init__(self, recipe: DecoderRecipe, data: Dataset, folder: Path) -> None:
        source = self._source = open_autoencoder(recipe.decoder.autoencoder)
        super().__init__(recipe, data, folder, lambda: _with_frozen_encoder(source.noisy or source.autoencoder))
        self.noise_std = recipe.decoder.noise_std
        self._digest = autoencoder_digest(source.path)
        self._encoder = source.autoencoder.to(self.device)
        self._scaling = source.record.latent if source.record else self.measured(self._encoder)

    def trained_call(self) -> Callable[..., Any]:
        return self.model.decode

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        images = self.pixels(batch, generator)
        noise = self.noise_std / self._scaling.scale * self.noise(len(images), generator)
        for part, draw in zip(images.split(self.part_size), noise.split(self.part_size), strict=True):
            with torch.no_grad():
                latents = self._encoder.encode(part)
            yield reconstruction_loss(self.forward(latents + draw).float(), part, self.recipe.objective)

    def scaling(self) -> LatentScaling:
        return self._scaling

    def digests(self) -> dict[str, str]:
        return super().digests() | {"autoencoder": self._digest}

    def result(self) -> tuple[Autoencoder, Autoencoder | None]:
        return self._source.autoencoder, self.average


def _with_frozen_encoder(autoencoder: Autoencoder) -> Autoencoder:
    model = copy.deepcopy(autoencoder)
    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_(name.startswith(DECODER_PARTS))
    return model


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
