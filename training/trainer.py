"""Training a flow of either family."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from starflow.runtime.plain.bits_per_dim import LEVEL, bits_per_dim
from starflow.runtime.plain.errors import RecipeError
from starflow.runtime.plain.images import grid, to_uint8
from starflow.training.adapters import add_adapters, merged_state
from starflow.training.autoencoder.latents import Views, as_latents
from starflow.training.checkpoint import save_checkpoint
from starflow.training.config import CheckpointConfig, ImageRange, LatentAutoencoder, LatentScaling
from starflow.training.continuous.transformer import ModulatedLayer
from starflow.training.data.augmentation import Augmentation
from starflow.training.data.fit import fit_data
from starflow.training.data.samples import Batch, Dataset, Samples, choose_views
from starflow.training.data.source import PointsSource
from starflow.training.data.split import representative
from starflow.training.families import build_flow, build_objective
from starflow.training.flow import Flow
from starflow.training.layers.dropout import set_dropout
from starflow.training.layers.transformer import Layer
from starflow.training.random_streams import EVALUATION, PREPARATION, SAMPLES, generator_for
from starflow.training.recipe import Recipe, Training
from starflow.training.runs.cuda_graph import RecordedPass
from starflow.training.runs.engine import Engine, Shards
from starflow.training.runs.run import ALONE, TrainingRun, device_named
from starflow.training.start import load_start


class Trainer(TrainingRun):
    """One run of a flow: a recipe, its data, and a folder that holds state.pt, log.jsonl, samples/ and checkpoint/."""

    UNITS: ClassVar = {"bits_per_dim": "bits/dim"}
    CHOSEN_BY: ClassVar = "bits_per_dim"
    LOWER_IS_BETTER: ClassVar = True
    recipe: Recipe
    training: Training
    model: Flow
    average: Flow

    def __init__(self, recipe: Recipe, data: Dataset, folder: Path, engine: Engine = ALONE) -> None:
        training, data = recipe.training, fit_data(in_latents(recipe, data, folder), recipe.model)
        if data.kind == "points" and training.augmentation != Augmentation():
            raise RecipeError(
                "training: crop, shift, flip and colour change images, but the data are points; leave them out"
            )
        if isinstance(engine, Shards) and training.precision == "fp16":
            raise RecipeError("training.precision: found fp16, expected bf16 or fp32 with --parallel fsdp")
        if training.condition_noise and data.conditioning.kind != "features":
            raise RecipeError(
                "training.condition_noise: found noise on text features, but the data have none; leave it out"
            )
        if recipe.start and recipe.start.adapters and isinstance(engine, Shards):
            raise RecipeError("start.adapters: expected none with --parallel fsdp, which shards what learns; use ddp")
        super().__init__(recipe, data, folder, lambda: _begun(recipe), engine)
        self.checkpoint_config = _checkpoint_config(recipe, data)
        self.objective = build_objective(recipe.objective, self.model)
        self.objective.process_mean = lambda value: engine.sum(value) / engine.count
        self.figures, self.memory = self.objective.figures, self.objective.memory
        # On the device: a copy in every step would wait for all that is queued there.
        self._null = None if data.null is None else data.null.to(self.device)
        self._level = LEVEL if data.kind == "images" else 1.0  # points and latents are not quantised

    def _laid_out(self) -> Callable[..., Any]:
        network = super()._laid_out()
        if not self.training.cuda_graph:
            return network
        if self.device.type != "cuda" or self.engine.parallel:
            raise RecipeError("training.cuda_graph: found true, expected false: graphs are for one process on CUDA")
        assert isinstance(network, nn.Module)
        return RecordedPass(network)

    # One step

    def prepare(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Augment, add noise, drop conditions: data float32 [B, C, H, W] or [B, D], and the model's condition."""
        values, condition = batch.values, batch.condition
        if self.data.kind == "latents":  # whose images were augmented before they were encoded
            values = choose_views(batch, generator)
        elif self.data.kind == "images":
            values = self.training.augmentation(values, generator)
        if condition is not None and self.training.condition_noise:
            condition = noisy_features(condition, self.training.condition_noise, generator)
        if condition is not None and self._null is not None:
            condition = drop_conditions(condition, self._null, self.training.label_drop, generator)
        return self._with_noise(values, generator), self._encode(condition)

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        x, y = self.prepare(batch, generator)
        return self.objective.losses(self.forward, x, y, generator, self.share)

    def layers(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, (Layer, ModulatedLayer))]

    def restore_memory(self, memory: dict[str, Tensor]) -> None:
        self.objective.restore(memory)

    def before_first_step(self) -> None:
        def draw(index: int) -> Tensor:
            generator = generator_for(self.training.seed, PREPARATION, index, self.device)
            return self.prepare(self.batch_at(index), generator)[0]

        self.objective.prepare(draw, self.training.seed)

    def digests(self) -> dict[str, str]:
        latents = {"latents": self.data.latents.key} if self.data.latents else {}
        return super().digests() | latents

    def _with_noise(self, values: Tensor, generator: torch.Generator) -> Tensor:
        x, std = self.data.as_float(values), self.training.noise_std
        if std > 0:
            return x + std * torch.randn(x.shape, generator=generator, device=self.device)
        if self.data.kind != "images":
            return x
        return x + LEVEL * (torch.rand(x.shape, generator=generator, device=self.device) - 0.5)

    def _encode(self, condition: Tensor | None) -> Tensor | None:
        if condition is None or self.data.conditioning.kind != "class":
            return condition
        return self.model.encode_labels(condition)

    # The run

    def described(self, means: Mapping[str, float]) -> str:
        text = super().described(means)
        if self.objective.loss_is_likelihood:
            text += f"  {self._bits(means.get('likelihood_loss', means['loss'])):.3f} bits/dim"
        if "effective_sample_size" in means:
            text += f"  effective samples {means['effective_sample_size'] / self.training.batch_size:.0%}"
        return text

    def _bits(self, loss: float) -> float:
        """Bits per dimension of a mean negative log-likelihood less log(2 pi) / 2."""
        nats = torch.tensor(-(loss + 0.5 * math.log(2 * math.pi)))
        return float(bits_per_dim(nats, 1, span=256 * self._level))

    def judge(self, samples: Samples) -> dict[str, float]:
        return {"bits_per_dim": self.evaluate(samples)}

    @torch.no_grad()
    def evaluate(self, samples: Samples) -> float:
        """Mean bits/dim of a part of the data under the averaged weights, fp32, with the noise of training.

        Points and latents are not quantised; their figure is -log2 p(x) / dimensions.
        """
        generator = generator_for(self.training.seed, EVALUATION, 0, self.device)
        bits = []
        for index in representative(samples, self.objective.judged).split(self.part_size):
            batch = samples[index].to(self.device)
            x = self._with_noise(batch.values, generator)
            y = self._encode(batch.condition)
            log_likelihood = self.objective.log_likelihood(self.average, x, y, generator)
            bits.append(bits_per_dim(log_likelihood, x[0].numel(), span=256 * self._level))
        return float(torch.cat(bits).mean())

    @torch.inference_mode()
    def sample_sheet(self) -> NDArray[np.uint8]:
        """Samples of the averaged weights, uint8 [H, W, C].

        Images have one column for each class, or the conditions of held-out images; latents are decoded. Of points, the
        density is drawn, next to that of held-out ones.
        """
        conditioning, guidance = self.data.conditioning, self.training.sample_guidance
        generator = generator_for(self.training.seed, SAMPLES, 0, self.device)
        if self.data.kind == "points":
            points = self.data.test.tensor
            noise = torch.randn(self.average.noise_shape(len(points)), generator=generator, device=self.device)
            return density_pair(self.average.reverse(noise).cpu().numpy(), points.numpy())
        columns = min(conditioning.num_classes or 8, 10)
        count = 4 * columns
        noise = torch.randn(self.average.noise_shape(count), generator=generator, device=self.device)
        if conditioning.kind == "class":
            x = self.average.sample_labels(noise, torch.arange(count, device=self.device) % columns, guidance)
        elif self.data.test.condition is not None and self._null is not None:
            held_out = representative(self.data.test, count)
            y = self.data.test[held_out[torch.arange(count) % len(held_out)]].to(self.device).condition
            x = self.average.reverse(noise, y, self._null[None], guidance=guidance)
        else:
            x = self.average.reverse(noise)
        if self.data.latents is not None:
            x = self.data.latents.decode(x)
        return grid(to_uint8(x.float().cpu().numpy()), columns)

    def write_checkpoint(self, folder: Path, extra_files: Mapping[str, str]) -> None:
        save_checkpoint(
            folder,
            self.checkpoint_config,
            merged_state(self.average),
            extra_files=extra_files,
            autoencoder=self.data.latents.source.path if self.data.latents else None,
            half=self.training.half_checkpoint,
        )


def noisy_features(features: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add noise to text features [B, T, W], `std` times the root mean square of each token; padding stays zero."""
    size = features.square().mean(-1, keepdim=True).sqrt()
    return features + std * size * torch.randn(features.shape, generator=generator, device=features.device)


def drop_conditions(condition: Tensor, null: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Replace each condition [B, ...] by `null` [...] with probability `rate`, so that the model can be guided."""
    dropped = torch.rand(len(condition), generator=generator, device=condition.device) < rate
    return torch.where(dropped.view(-1, *[1] * null.ndim), null, condition)


def density_pair(points: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The first two dimensions of two sets of points [N, D] as densities side by side, uint8 [128, 256, 1]."""
    low, high = others[:, :2].min(0), others[:, :2].max(0)
    extent = list(zip(low - 0.1 * (high - low), high + 0.1 * (high - low), strict=True))
    pictures = []
    for each in (points, others):
        counts, _, _ = np.histogram2d(each[:, 1], each[:, 0], bins=128, range=extent[::-1])
        pictures.append(np.sqrt(counts[::-1] / max(counts.max(), 1)))
    return (255 * np.concatenate(pictures, axis=1)).astype(np.uint8)[..., None]


def _checkpoint_config(recipe: Recipe, data: Dataset) -> CheckpointConfig:
    pixels: tuple[int, ...] = data.latents.pixel_shape if data.latents else tuple(data.train.values.shape[1:])
    mode: Literal["L", "RGB"] = "L" if pixels[0] == 1 else "RGB"
    return CheckpointConfig(
        model=recipe.model,
        conditioning=data.conditioning,
        latent=data.latents.scaling if data.latents else LatentScaling(),
        noise_std=recipe.training.noise_std,
        image=ImageRange(mode="latent" if data.kind == "points" else mode),
        text=data.text,
        autoencoder=LatentAutoencoder(pixel_shape=data.latents.pixel_shape) if data.latents else None,
    )


def in_latents(recipe: Recipe, data: Dataset, folder: Path) -> Dataset:
    """The data as the recipe's autoencoder encodes them, if the recipe names one and they are images still."""
    source, training = recipe.data, recipe.training
    if isinstance(source, PointsSource) or source.autoencoder is None or data.latents is not None:
        return data
    views = Views(training.augmentation, training.views, training.seed)
    device, cache = device_named(training.device), folder / "latents"
    return as_latents(data, source.autoencoder, source.latent, views, cache=cache, device=device)


def _begun(recipe: Recipe) -> Flow:
    """The flow as a run begins: with random weights or those of a checkpoint, and with dropout."""
    flow, training, start = build_flow(recipe.model), recipe.training, recipe.start
    set_dropout(
        flow,
        attention=training.attention_dropout,
        feed_forward=training.feed_forward_dropout,
        embedding=training.embedding_dropout,
    )
    if start is not None:
        if flow.device.type != "meta":
            load_start(flow, start)
        if start.adapters is not None:
            add_adapters(flow, start.adapters)
    return flow
