"""The trainer of both families: any objective, noise augmentation, an averaged model, and exact resume.

Everything random in a step is a function of (seed, step), and the order of images one of (seed, epoch). So a run that
was stopped and resumed goes through the same numbers as one that was not.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from starflow.runtime.atomic_write import atomic_file
from starflow.runtime.bits_per_dim import bits_per_dim
from starflow.runtime.errors import CheckpointError, RecipeError, StarflowError, UsageError
from starflow.runtime.images import grid, to_uint8
from starflow.training.checkpoint import save_checkpoint
from starflow.training.config import CheckpointConfig, ImageRange
from starflow.training.continuous.flow_matching import FlowMatching
from starflow.training.continuous.velocity import VelocityNetwork
from starflow.training.data import Dataset, Samples, fit_data, to_float
from starflow.training.flow import Flow, build_flow
from starflow.training.model import FlowModel
from starflow.training.objective import MaximumLikelihood, Objective
from starflow.training.optimizer import average_decay_at, build_optimizer, learning_rate_at, update_average
from starflow.training.progress import Journal
from starflow.training.recipe import Recipe, changed_field

ORDER, STEP, EVALUATION, SAMPLES = range(4)  # streams of random numbers
LEVEL = 1 / 127.5  # width of one grey level in [-1, 1]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """Where a call of `Trainer.fit` ended. Numbers nothing was measured for are None.

    Attributes:
        step: Updates done, of `total_steps` in the recipe.
        loss: Mean over the last steps.
        images_per_second: Mean over the call, evaluation and samples not counted.
        test_step, test_bits_per_dim: When the averaged weights last met the held-out images, and how well.
    """

    step: int
    total_steps: int
    interrupted: bool
    loss: float | None
    images_per_second: float | None
    test_step: int | None = None
    test_bits_per_dim: float | None = None


def generator_for(seed: int, stream: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step, epoch or evaluation: a function of its place in the run alone."""
    state = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)  # torch takes 63 bits


class Trainer:
    """One run: a recipe, its data, and a folder that holds state.pt, log.jsonl, samples/ and checkpoint/."""

    def __init__(self, recipe: Recipe, data: Dataset, folder: Path) -> None:
        self.recipe, self.data, self.folder, self.step = recipe, fit_data(data, recipe.model), folder, 0
        training = self.training = recipe.training
        self.device = _device(training.device)
        if self.data.train.values.dtype != torch.uint8 and (training.shift or training.flip):
            raise RecipeError("training.shift, training.flip: augment images; the data are points")
        if training.precision == "fp16" and self.device.type != "cuda":
            raise RecipeError("training.precision: found fp16, expected bf16 or fp32: fp16 trains on CUDA only")
        if training.threads is not None:
            torch.set_num_threads(training.threads)
        self.checkpoint_config = CheckpointConfig(
            model=recipe.model,
            conditioning=self.data.conditioning,
            noise_std=training.noise_std,
            image=_image_range(self.data.train),
        )
        self.steps_per_epoch = len(data.train) // training.batch_size
        if self.steps_per_epoch == 0:
            raise RecipeError(
                f"training.batch_size: found {training.batch_size}, expected at most {len(data.train)} images"
            )
        self.total_steps = training.steps or max(1, round((training.epochs or 0) * self.steps_per_epoch))
        torch.manual_seed(training.seed)
        self.model = build_flow(recipe.model).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.objective: Objective[Any] = _objective(recipe, self.model)
        self._network = torch.compile(self.model) if training.compile else self.model
        self.optimizer = build_optimizer(self.model, training)
        self.scaler = torch.amp.GradScaler(enabled=training.precision == "fp16")
        self._order = (-1, torch.empty(0))
        self.metrics: dict[str, Any] = {}  # test_step, test_bits_per_dim

    # One step

    def batch_at(self, step: int) -> Samples:
        """The samples of a step, on the device; every epoch is a new order, and its incomplete last batch is left out."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = generator_for(self.training.seed, ORDER, epoch)
            self._order = (epoch, torch.randperm(len(self.data.train), generator=generator))
        start = place * self.training.batch_size
        batch = self.data.train[self._order[1][start : start + self.training.batch_size]]
        return Samples(
            batch.values.to(self.device), None if batch.condition is None else batch.condition.to(self.device)
        )

    def prepare(self, batch: Samples, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Augment, add noise, drop conditions: float32 [B, C, H, W] or [B, D] and the model's condition."""
        training = self.training
        values, condition = batch.values, batch.condition
        if training.shift:
            values = shift_images(values, training.shift, generator)
        if training.flip:
            mirrored = torch.rand(len(values), generator=generator, device=self.device) < 0.5
            values = torch.where(mirrored[:, None, None, None], values.flip(3), values)
        if condition is not None and self.data.null is not None:
            condition = drop_conditions(condition, self.data.null.to(self.device), training.label_drop, generator)
        return self._with_noise(values, generator), self._encode(condition)

    def train_step(self) -> dict[str, Tensor]:
        """Do one update; return loss, gradient norm and more as scalars on the device, so that nothing waits for them."""
        training = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.total_steps, training)
        generator = generator_for(training.seed, STEP, self.step, self.device)
        x, y = self.prepare(self.batch_at(self.step), generator)
        loss = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        size = training.batch_size // training.accumulate
        for part in self.objective.losses(self._forward, x, y, generator, size):
            self.scaler.scale(part / training.accumulate).backward()
            loss += part.detach() / training.accumulate
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        update_average(self.average, self.model, average_decay_at(self.step, training.ema_decay))
        return {"loss": loss, "gradient_norm": norm, **self.objective.figures}

    def _forward(self, *inputs: Tensor | None) -> Any:
        dtype = AUTOCAST.get(self.training.precision)
        with torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return self._network(*inputs)

    def _with_noise(self, values: Tensor, generator: torch.Generator) -> Tensor:
        images, std = values.dtype == torch.uint8, self.training.noise_std
        x = to_float(values) if images else values
        if std > 0:
            return x + std * torch.randn(x.shape, generator=generator, device=self.device)
        if not images:
            return x
        return x + LEVEL * (torch.rand(x.shape, generator=generator, device=self.device) - 0.5)

    def _encode(self, condition: Tensor | None) -> Tensor | None:
        if condition is None or self.data.conditioning.kind != "class":
            return condition
        return self.model.encode_labels(condition)

    # The run

    def fit(self, max_steps: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Train to the end of the recipe, to `max_steps`, or until `should_stop()`; save on the way and at the end.

        Raises:
            StarflowError: The loss is not finite. The last saved state stays.
        """
        training, last = self.training, min(self.total_steps, max_steps or self.total_steps)
        pending: list[dict[str, Tensor]] = []
        loss: float | None = None
        seconds, steps, all_seconds, all_steps, saved = 0.0, 0, 0.0, 0, -1
        with Journal(self.folder, self.step, self.total_steps) as journal:
            clock = time.perf_counter()
            while self.step < last and not should_stop():
                pending.append(self.train_step())
                due = {name: self.step % every == 0 or self.step == last for name, every in self._intervals().items()}
                if not any(due.values()):
                    continue
                steps += len(pending)
                means, pending = self._record(journal, pending), []  # first: a broken model must not be saved below
                loss = means["loss"]
                seconds += time.perf_counter() - clock
                if due["log"]:
                    speed = steps * training.batch_size / seconds
                    journal.progress(self.step, self._described(means), speed, training.batch_size)
                    all_seconds, all_steps, seconds, steps = all_seconds + seconds, all_steps + steps, 0.0, 0
                if due["evaluate"]:
                    bits = self.evaluate()
                    self.metrics = {"test_step": self.step, "test_bits_per_dim": bits}
                    journal.record(self.step, test_bits_per_dim=bits)
                    journal.say(f"step {self.step}: held-out {bits:.4f} bits/dim")
                if due["sample"]:
                    journal.picture(self.step, self.sample_sheet())
                if due["checkpoint"]:
                    self.save()
                    saved = self.step
                clock = time.perf_counter()
            if pending:
                loss = self._record(journal, pending)["loss"]
            if saved != self.step:
                self.save()
        speed_of_all = all_steps * training.batch_size / all_seconds if all_steps else None
        return Outcome(self.step, self.total_steps, self.step < last, loss, speed_of_all, **self.metrics)

    def _intervals(self) -> dict[str, int]:
        t = self.training
        names = ("log", "evaluate", "sample", "checkpoint")
        return dict(zip(names, (t.log_every, t.evaluate_every, t.sample_every, t.checkpoint_every), strict=True))

    def _record(self, journal: Journal, pending: list[dict[str, Tensor]]) -> dict[str, float]:
        """Write the figures of the last steps; return their means."""
        columns = {name: torch.stack([step[name] for step in pending]).tolist() for name in pending[0]}
        first = self.step - len(pending)
        for index, values in enumerate(zip(*columns.values(), strict=True)):
            figures = dict(zip(columns, values, strict=True))
            loss, norm = figures["loss"], figures["gradient_norm"]
            overflows = math.isinf(norm) and self.scaler.is_enabled()  # fp16 skips such a step and lowers its scale
            if not math.isfinite(loss) or not (math.isfinite(norm) or overflows):
                raise StarflowError(
                    f"step {first + index + 1}: loss {loss}, gradient norm {norm}; lower training.learning_rate or raise"
                    f" training.warmup_steps and start again (--no-resume); {self.folder} holds the last good state"
                )
            rate = learning_rate_at(first + index, self.total_steps, self.training)
            if overflows:
                del figures["gradient_norm"]
            journal.record(first + index + 1, learning_rate=rate, **figures)
        return {name: sum(values) / len(values) for name, values in columns.items()}

    def _described(self, means: Mapping[str, float]) -> str:
        """The mean figures of the last steps, for the live line."""
        text = f"loss {means['loss']:.4f}"
        if isinstance(self.model, FlowModel):
            text += f"  {self._bits(means['loss']):.3f} bits/dim"
        if "effective_sample_size" in means:
            text += f"  effective samples {means['effective_sample_size'] / self.training.batch_size:.0%}"
        return text

    def _bits(self, loss: float) -> float:
        """Bits per dimension of a mean negative log-likelihood (which lacks the constant log(2 pi) / 2)."""
        nats = torch.tensor(-(loss + 0.5 * math.log(2 * math.pi)))
        return float(bits_per_dim(nats, 1, span=256 * LEVEL))

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean bits/dim of the held-out samples under the averaged weights, fp32, with the noise of training.

        Points are not quantised: their figure is -log2 p(x) / dimensions.
        """
        generator = generator_for(self.training.seed, EVALUATION, 0, self.device)
        size = self.training.batch_size // self.training.accumulate
        level = LEVEL if self.data.test.values.dtype == torch.uint8 else 1.0
        bits = []
        for index in torch.arange(len(self.data.test))[: self.objective.judged].split(size):
            batch = self.data.test[index]
            x = self._with_noise(batch.values.to(self.device), generator)
            y = self._encode(None if batch.condition is None else batch.condition.to(self.device))
            log_likelihood = self.objective.log_likelihood(self.average, x, y, generator)
            bits.append(bits_per_dim(log_likelihood, x[0].numel(), span=256 * level))
        return float(torch.cat(bits).mean())

    @torch.inference_mode()
    def sample_sheet(self) -> NDArray[np.uint8]:
        """Samples of the averaged weights, uint8 [H, W, C].

        Images: a column a class, or the conditions of held-out images. Points: their density, held-out ones beside them.
        """
        conditioning, guidance = self.data.conditioning, self.training.sample_guidance
        generator = generator_for(self.training.seed, SAMPLES, 0, self.device)
        if self.data.test.values.dtype != torch.uint8:
            held_out = self.data.test.values
            noise = torch.randn(self.average.noise_shape(len(held_out)), generator=generator, device=self.device)
            return density_pair(self.average.reverse(noise).cpu().numpy(), held_out.numpy())
        columns = min(conditioning.num_classes or 8, 10)
        count = 4 * columns
        noise = torch.randn(self.average.noise_shape(count), generator=generator, device=self.device)
        if conditioning.kind == "class":
            x = self.average.sample_labels(noise, torch.arange(count, device=self.device) % columns, guidance)
        elif self.data.test.condition is not None and self.data.null is not None:
            y = self.data.test.condition[torch.arange(count) % len(self.data.test)].to(self.device)
            x = self.average.reverse(noise, y, self.data.null.to(self.device)[None], guidance=guidance)
        else:
            x = self.average.reverse(noise)
        return grid(to_uint8(x.float().cpu().numpy()), columns)

    # State

    def save(self) -> None:
        """Write state.pt (to resume from) and checkpoint/ (the averaged weights), each whole or not at all."""
        state = {
            "step": self.step,
            "recipe": json.dumps(self.recipe.model_dump(mode="json")),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state(),
            "metrics": self.metrics,
        }
        with atomic_file(self.folder / "state.pt") as temporary:
            torch.save(state, temporary)
        extra = {
            "recipe.yaml": yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False),
            "metrics.json": json.dumps({"step": self.step, **self.metrics}, indent=2) + "\n",
        }
        weights = self.average.state_dict()
        half = self.training.half_checkpoint
        save_checkpoint(self.folder / "checkpoint", self.checkpoint_config, weights, extra_files=extra, half=half)

    def resume(self) -> bool:
        """Continue from state.pt if the folder holds one; say whether it did.

        Raises:
            RecipeError: The recipe is another one.
            CheckpointError: The file is damaged.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            was = json.loads(state["recipe"])
        except Exception as error:  # torch reports damage by many types
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: damaged ({reason}); pass --no-resume to start again") from None
        changed = changed_field(was, self.recipe.model_dump(mode="json"))
        if changed is not None:
            raise RecipeError(f"{path}: belongs to another recipe: {changed} changed; use another --out or --no-resume")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.objective.load_state(state.get("objective", {}))
        self.step, self.metrics = state["step"], state.get("metrics", {})
        return True


def drop_conditions(condition: Tensor, null: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Replace each condition [B, ...] by `null` [...] with probability `rate`, so that guidance has something to compare."""
    dropped = torch.rand(len(condition), generator=generator, device=condition.device) < rate
    return torch.where(dropped.view(-1, *[1] * null.ndim), null, condition)


def shift_images(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, H, W] by up to `most` pixels along both axes, repeating its border."""
    count, _, height, width = pixels.shape
    moves = torch.randint(-most, most + 1, (2, count, 1), generator=generator, device=pixels.device)
    rows = (torch.arange(height, device=pixels.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + moves[1]).clamp(0, width - 1)
    image = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def density_pair(points: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The first two dimensions of two sets of points [N, D] as densities side by side, uint8 [128, 256, 1]."""
    low, high = others[:, :2].min(0), others[:, :2].max(0)
    extent = list(zip(low - 0.1 * (high - low), high + 0.1 * (high - low), strict=True))
    pictures = []
    for each in (points, others):
        counts, _, _ = np.histogram2d(each[:, 1], each[:, 0], bins=128, range=extent[::-1])
        pictures.append(np.sqrt(counts[::-1] / max(counts.max(), 1)))
    return (255 * np.concatenate(pictures, axis=1)).astype(np.uint8)[..., None]


def _image_range(samples: Samples) -> ImageRange:
    if samples.values.dtype != torch.uint8:
        return ImageRange(mode="latent")
    return ImageRange(mode="L" if samples.values.shape[1] == 1 else "RGB")


def _objective(recipe: Recipe, model: Flow) -> Objective[Any]:
    if isinstance(model, FlowModel):
        return MaximumLikelihood(model)
    assert isinstance(model, VelocityNetwork) and recipe.objective is not None  # the recipe has checked it
    return FlowMatching(recipe.objective)


def _device(name: str) -> torch.device:
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    except RuntimeError:
        raise RecipeError(f"training.device: found {name!r}, expected auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("training.device: found cuda, but torch sees no CUDA device; use auto or cpu")
    return device
