"""What every training run shares: the order of batches, the step, the journal, saving, and exact resume.

Everything random in a step is a function of (seed, step), and the order of images is one of (seed, epoch). So a run that
was stopped and resumed sees the same numbers as one that was not.
"""

import copy
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import CheckpointError, RecipeError, StarflowError, first_line
from starflow.runtime.plain.memory import check_memory
from starflow.training.data.samples import Batch, Samples, mirror_images, shift_images
from starflow.training.published.torch_file import check_archive
from starflow.training.recipe import AnyRecipe, changed_field
from starflow.training.runs.optimizer import average_decay_at, build_optimizer, learning_rate_at, update_average
from starflow.training.runs.progress import Journal

ORDER, STEP, EVALUATION, SAMPLES = range(4)  # streams of random numbers
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
DUE = ("log", "evaluate", "sample", "checkpoint")  # done every so many steps, which the recipe says
DEVICE_SHARE = 0.25  # of the free memory of a GPU: data that take less are kept there
ANOTHER = "use another --out, or --no-resume to start again"


@dataclass(frozen=True)
class Outcome:
    """Where a call of `TrainingRun.fit` ended. Figures that were not measured are None."""

    step: int  # updates done, of `total_steps` in the recipe
    total_steps: int
    interrupted: bool
    loss: float | None  # mean over the last steps
    images_per_second: float | None  # mean over the call, without the time of evaluations and samples
    test_step: int | None = None  # step of the last evaluation on held-out images
    test_bits_per_dim: float | None = None
    # Of an autoencoder, in dB, from its own latents and from noisy ones.
    test_psnr: float | None = None
    test_noisy_psnr: float | None = None


def generator_for(seed: int, stream: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step, epoch or evaluation: a function of its place in the run alone."""
    state = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)  # torch takes 63 bits


class TrainingRun(ABC):
    """One run: a recipe, its data, and a folder that holds state.pt, log.jsonl, samples/ and checkpoint/."""

    UNITS: ClassVar[Mapping[str, str]]  # the figures of `judge`, and their units

    def __init__(self, recipe: AnyRecipe, samples: Samples, folder: Path, model: Callable[[], nn.Module]) -> None:
        """Prepare a run; `model` builds the model once torch has the recipe's seed.

        Raises:
            RecipeError: the recipe does not fit the data or this machine.
        """
        self.recipe, self.samples, self.folder, self.step = recipe, samples, folder, 0
        training = self.training = recipe.training
        self.device = device_named(training.device)
        if training.precision == "fp16" and self.device.type != "cuda":
            raise RecipeError("training.precision: found fp16, expected bf16 or fp32: fp16 trains on CUDA only")
        if training.threads is not None:
            torch.set_num_threads(training.threads)
        self.steps_per_epoch = len(samples) // training.batch_size
        if self.steps_per_epoch == 0:
            raise RecipeError(
                f"training.batch_size: found {training.batch_size}, expected at most {len(samples)} images"
            )
        self.total_steps = training.steps or max(1, round((training.epochs or 0) * self.steps_per_epoch))
        if self.device.type == "cuda" and samples.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            self.samples = samples.resident(self.device)
        self._check_memory(model)
        torch.manual_seed(training.seed)
        self.model = model().to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)  # a moving one: judged, sampled and kept
        self._network = torch.compile(self.trained_call()) if training.compile else self.trained_call()
        self.optimizer = build_optimizer(self.model, training)
        self.scaler = torch.amp.GradScaler(enabled=training.precision == "fp16")
        self._order = (-1, torch.empty(0))
        self.figures: dict[str, Tensor] = {}  # scalars of the last step besides its loss, by their names in log.jsonl
        self.memory: dict[str, Tensor] = {}  # what a resumed run needs beyond weights, average, optimiser and step
        self.metrics: dict[str, Any] = {}  # the last figures of `judge`, and the step they belong to

    def _check_memory(self, model: Callable[[], nn.Module]) -> None:
        """See that the weights fit into memory: on a CPU with their gradients, average and two moments of AdamW."""
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in model().parameters())
        copies = 5 if self.device.type == "cpu" else 1
        check_memory(
            4 * copies * count, f"a model of {count:,} parameters", "train a smaller one, or on a larger machine"
        )

    # What one kind of run does

    def trained_call(self) -> Callable[..., Any]:
        """The forward pass that is trained."""
        return self.model

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the mean loss of every part of a batch; the backward pass of a part runs before the next is computed."""

    @abstractmethod
    def judge(self) -> dict[str, float]:
        """The figures of UNITS: those of the averaged weights on held-out samples, in fp32."""

    @abstractmethod
    def sample_sheet(self) -> NDArray[np.uint8]:
        """A sheet of what the averaged weights generate, uint8 [H, W, C]."""

    @abstractmethod
    def write_checkpoint(self, extra_files: Mapping[str, str]) -> None:
        """Write checkpoint/, whole or not at all, and these text files into it."""

    def described(self, means: Mapping[str, float]) -> str:
        """The mean figures of the last steps, for the live line."""
        return f"loss {means['loss']:.4f}"

    def digests(self) -> dict[str, str]:
        """Digests of what the run reads besides its recipe, by name; a resumed run has to find the same."""
        return {}

    # One step

    def batch_at(self, step: int) -> Batch:
        """The samples of a step, on the device; every epoch has a new order and leaves out its incomplete last batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = generator_for(self.training.seed, ORDER, epoch)
            self._order = (epoch, torch.randperm(len(self.samples), generator=generator))
        start = place * self.training.batch_size
        return self.samples[self._order[1][start : start + self.training.batch_size]].to(self.device)

    def augmented(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The images of a batch, shifted and mirrored at random as the recipe says."""
        values = batch.values
        if self.training.shift:
            values = shift_images(values, self.training.shift, generator)
        if self.training.flip:
            mirrored = values.flip(3) if batch.mirrored is None else batch.mirrored
            values = mirror_images(values, mirrored, generator)
        return values

    @property
    def part_size(self) -> int:
        """Samples that go through the model at once."""
        return self.training.batch_size // self.training.accumulate

    def train_step(self) -> dict[str, Tensor]:
        """Do one update; return loss, gradient norm and more as scalars on the device, for which nothing has to wait."""
        training = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.total_steps, training)
        generator = generator_for(training.seed, STEP, self.step, self.device)
        batch = self.batch_at(self.step)
        loss = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part in self.losses(batch, generator):
            self.scaler.scale(part / training.accumulate).backward()
            loss += part.detach() / training.accumulate
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        update_average(self.average, self.model, average_decay_at(self.step, training.ema_decay))
        return {"loss": loss, "gradient_norm": norm, **self.figures}

    def forward(self, *inputs: Any) -> Any:
        """`trained_call` in the precision of the recipe, compiled if the recipe says so."""
        dtype = AUTOCAST.get(self.training.precision)
        with torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return self._network(*inputs)

    # The run

    def fit(self, max_steps: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Train to the end of the recipe, to `max_steps`, or until `should_stop()`; save during the run and at its end.

        Raises:
            StarflowError: the loss is not finite; the last saved state stays.
        """
        training, last = self.training, min(self.total_steps, max_steps or self.total_steps)
        pending: list[dict[str, Tensor]] = []
        loss: float | None = None
        seconds, steps, all_seconds, all_steps, saved = 0.0, 0, 0.0, 0, -1
        with Journal(self.folder, self.step, self.total_steps) as journal:
            clock = time.perf_counter()
            while self.step < last and not should_stop():
                pending.append(self.train_step())
                due = {name: self.step == last or self.step % getattr(training, f"{name}_every") == 0 for name in DUE}
                if not any(due.values()):
                    continue
                steps += len(pending)
                means, pending = self._record(journal, pending), []  # first: a broken model must not be saved below
                loss = means["loss"]
                seconds += time.perf_counter() - clock
                if due["log"]:
                    speed = steps * training.batch_size / seconds
                    journal.progress(self.step, self.described(means), speed, training.batch_size)
                    all_seconds, all_steps, seconds, steps = all_seconds + seconds, all_steps + steps, 0.0, 0
                if due["evaluate"]:
                    judged = self.judge()
                    self.metrics = {"test_step": self.step, **judged}
                    journal.record(self.step, **judged)
                    told = ", ".join(f"{judged[name]:.4f} {unit}" for name, unit in self.UNITS.items())
                    journal.say(f"step {self.step}: held-out {told}")
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
            "metrics": self.metrics,
            "objective": self.memory,
            **self.digests(),
        }
        with atomic_file(self.folder / "state.pt") as temporary:
            _save_state(state, temporary)
        self.write_checkpoint(
            {
                "recipe.yaml": yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False),
                "metrics.json": json.dumps({"step": self.step, **self.metrics}, indent=2) + "\n",
            }
        )

    def resume(self) -> bool:
        """Continue from state.pt if the folder holds one; return whether it did.

        Raises:
            RecipeError: state.pt belongs to another recipe or other data.
            CheckpointError: state.pt is damaged, or cannot be read.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        try:
            check_archive(path)
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            # Read as a recipe, so that fields added since then have their defaults.
            was = type(self.recipe).model_validate_json(state["recipe"]).model_dump(mode="json")
        except (MemoryError, torch.OutOfMemoryError):  # the file may be whole, and another machine read it
            raise
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
        except Exception as error:  # torch reports damage by many types
            raise CheckpointError(f"{path}: damaged ({first_line(error)}); use --no-resume to start again") from error
        changed = changed_field(was, self.recipe.model_dump(mode="json"))
        if changed is not None:
            raise RecipeError(f"{path}: belongs to another recipe: {changed} changed; {ANOTHER}")
        for name, digest in self.digests().items():
            if state.get(name, digest) != digest:
                raise RecipeError(f"{path}: belongs to other data: the {name} changed; {ANOTHER}")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.memory.update(state.get("objective", {}))
        self.step, self.metrics = state["step"], state.get("metrics", {})
        return True


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a state.

    Raises:
        OSError: the system refuses, which PyTorch reports by another type and without its reason.
    """
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ and not isinstance(cause, OSError):
                cause = cause.__context__
            raise OSError(getattr(cause, "errno", None), getattr(cause, "strerror", str(cause)), str(path)) from None


def device_named(name: str) -> torch.device:
    """The device of a recipe, or RecipeError: `auto` is CUDA if there is one, else the CPU."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    except RuntimeError:
        raise RecipeError(f"training.device: found {name!r}, expected auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"training.device: found {name!r}, expected auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("training.device: found cuda, but torch sees no CUDA device; use auto or cpu")
    return device
