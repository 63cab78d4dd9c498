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
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import CheckpointError, RecipeError, StarflowError, first_line
from starflow.runtime.plain.memory import check_memory
from starflow.training.data.samples import Batch, Dataset, Samples
from starflow.training.objective import Share
from starflow.training.published.torch_file import check_archive
from starflow.training.random_streams import DROPOUT, STEP, generator_for, seed_for
from starflow.training.recipe import AnyRecipe, StudentRecipe, changed_field
from starflow.training.runs.batches import Batches
from starflow.training.runs.best import Best
from starflow.training.runs.engine import Engine
from starflow.training.runs.optimizer import average_decay_at, build_optimizer, learning_rate_at, update_average
from starflow.training.runs.progress import Journal, Silence

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
DUE = ("log", "evaluate", "sample", "checkpoint")  # done every so many steps, which the recipe says
DEVICE_SHARE = 0.25  # of the free memory of a GPU: data that take less are kept there
ALONE = Engine()
ANOTHER = "use another --out, or --no-resume to start again"


@dataclass(frozen=True)
class Outcome:
    """Where a call of `TrainingRun.fit` ended. Figures that were not measured are None."""

    step: int  # updates done, of `total_steps` in the recipe
    total_steps: int
    interrupted: bool
    loss: float | None  # mean over the last steps
    images_per_second: float | None  # mean over the call, without the time of evaluations and samples
    stopped_early: bool = False  # whether `training.patience` ended the run
    best_step: int | None = None  # step of checkpoint-best/
    validation_step: int | None = None  # step of the last evaluation on the validation part
    validation_bits_per_dim: float | None = None
    test_step: int | None = None  # step of the last evaluation on the test part
    test_bits_per_dim: float | None = None
    # Of an autoencoder, in dB, from its own latents and from noisy ones.
    validation_psnr: float | None = None
    validation_noisy_psnr: float | None = None
    test_psnr: float | None = None
    test_noisy_psnr: float | None = None
    # Of a student: what it minimises, KL(student || teacher) and -log q of known tokens in nats per value, the error of its tokens.
    validation_objective: float | None = None
    validation_divergence: float | None = None
    validation_pair_error: float | None = None
    validation_surprise: float | None = None
    test_objective: float | None = None
    test_divergence: float | None = None
    test_pair_error: float | None = None
    test_surprise: float | None = None
    ema_decay: float | None = None  # of the average that the validation part chose


class TrainingRun(ABC):
    """One run: a recipe, its data, and a folder for state.pt, log.jsonl, samples/, checkpoint/ and checkpoint-best/."""

    UNITS: ClassVar[Mapping[str, str]]  # the figures of `judge`, and their units
    # The figure whose best value on the validation part decides what is kept, and which way is better.
    CHOSEN_BY: ClassVar[str]
    LOWER_IS_BETTER: ClassVar[bool]

    def __init__(
        self,
        recipe: AnyRecipe | StudentRecipe,
        data: Dataset,
        folder: Path,
        model: Callable[[], nn.Module],
        engine: Engine = ALONE,
    ) -> None:
        """Prepare a run; `model` builds the model once torch has the recipe's seed, and `engine` lays it out.

        Raises:
            RecipeError: the recipe does not fit the data or this machine.
        """
        self.recipe, self.data, self.samples, self.folder, self.step = recipe, data, data.train, folder, 0
        training = self.training = recipe.training
        self.engine = engine
        self.device = engine.device(device_named(training.device))
        if training.precision == "fp16" and self.device.type != "cuda":
            raise RecipeError("training.precision: found fp16, expected bf16 or fp32: fp16 trains on CUDA only")
        if training.threads is not None:
            torch.set_num_threads(training.threads)
        self.steps_per_epoch = len(self.samples) // training.batch_size
        if self.steps_per_epoch == 0:
            raise RecipeError(
                f"training.batch_size: found {training.batch_size}, expected at most {len(self.samples)} images"
            )
        self.total_steps = training.steps or max(1, round((training.epochs or 0) * self.steps_per_epoch))
        if self.device.type == "cuda" and isinstance(self.samples.values, Tensor):
            free = torch.cuda.mem_get_info(self.device)[0]
            if self.samples.nbytes < DEVICE_SHARE * free:
                self.samples = self.samples.resident(self.device)
        self._check_memory(model)
        torch.manual_seed(training.seed)
        self.model = model().to(self.device)
        self.averages = {decay: _average_of(self.model) for decay in training.ema_decays}
        self.decay = training.ema_decays[0]  # of the average that the validation part chose
        self.average = self.averages[self.decay]  # the one that is judged, sampled and kept
        self.best = Best(self.LOWER_IS_BETTER)
        self._network = self._laid_out()
        self.optimizer = build_optimizer(self.model, training)
        self.scaler = torch.amp.GradScaler(enabled=training.precision == "fp16")
        self.batches = Batches(self.samples, training.seed, training.batch_size, engine)
        self.figures: dict[str, Tensor] = {}  # scalars of the last step besides its loss, by their names in log.jsonl
        self.memory: dict[str, Tensor] = {}  # what a resumed run needs beyond weights, average, optimiser and step
        self.metrics: dict[str, Any] = {}  # the last figures of `judge`, and the steps they belong to

    def _laid_out(self) -> Callable[..., Any]:
        """The forward pass as the recipe and the engine want it."""
        call, layers = self.trained_call(), self.layers()
        if self.training.recompute:
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if self.training.compile:
            for layer in layers:
                layer.compile()
            call = call if layers else torch.compile(call)
        if not self.engine.parallel:
            return call
        assert isinstance(call, nn.Module)  # of a flow; the command refuses the others
        if self.training.batch_size % (self.training.accumulate * self.engine.count):
            raise RecipeError(
                f"training.batch_size: found {self.training.batch_size}, expected a multiple of accumulate"
                f" {self.training.accumulate} times {self.engine.count} processes"
            )
        network = self.engine.distribute(call, layers)
        for average in self.averages.values():
            self.engine.shard(average)
        return network

    def _check_memory(self, model: Callable[[], nn.Module]) -> None:
        """See that the weights fit into memory: on a CPU with their gradients, averages and two moments of AdamW."""
        with torch.device("meta"):
            parameters = list(model().parameters())
        count = sum(parameter.numel() for parameter in parameters)
        learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        beside = (3 + len(self.training.ema_decays)) * learning if self.device.type == "cpu" else 0
        check_memory(
            4 * (count + beside), f"a model of {count:,} parameters", "train a smaller one, or on a larger machine"
        )

    # What one kind of run does

    def trained_call(self) -> Callable[..., Any]:
        """The forward pass that is trained."""
        return self.model

    def layers(self) -> list[nn.Module]:
        """The repeated layers of the model, which are compiled, recomputed and sharded one by one."""
        return []

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the mean loss of each of this process's parts of a batch.

        The backward pass of a part runs before the next is computed.
        """

    @abstractmethod
    def judge(self, samples: Samples) -> dict[str, float]:
        """The figures of UNITS: those of the averaged weights on a part of the data, in fp32."""

    @abstractmethod
    def sample_sheet(self) -> NDArray[np.uint8]:
        """A sheet of what the averaged weights generate, uint8 [H, W, C]."""

    @abstractmethod
    def write_checkpoint(self, folder: Path, extra_files: Mapping[str, str]) -> None:
        """Write the averaged weights into a folder, whole or not at all, and these text files beside them."""

    def described(self, means: Mapping[str, float]) -> str:
        """The mean figures of the last steps, for the live line."""
        return f"loss {means['loss']:.4f}"

    def restore_memory(self, memory: dict[str, Tensor]) -> None:
        """Take up the `memory` of a run that was stopped."""
        self.memory.update(memory)

    def before_first_step(self) -> None:  # noqa: B027
        """Do what has to come before a run begins."""

    def digests(self) -> dict[str, str]:
        """Digests of what the run reads besides its recipe, by name; a resumed run has to find the same."""
        return {"split": self.data.split}

    # One step

    def batch_at(self, step: int) -> Batch:
        """The samples of a step, on the device."""
        return self.batches.at(step, self.device)

    @property
    def part_size(self) -> int:
        """Samples that go through the model at once, where nothing is learned from them."""
        return self.training.batch_size // self.training.accumulate

    @property
    def share(self) -> Share:
        """Which parts of a batch this process trains on."""
        return Share(self.part_size // self.engine.count, self.engine.rank, self.engine.count)

    def train_step(self) -> dict[str, Tensor]:
        """Do one update; return loss, gradient norm and more as scalars on the device, for which nothing has to wait."""
        training = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.total_steps, training)
        generator = generator_for(training.seed, STEP, self.step, self.device)
        # Dropout draws from torch's own generators, and differently in every process.
        torch.manual_seed(seed_for(training.seed, DROPOUT, self.step * self.engine.count + self.engine.rank))
        batch = self.batch_at(self.step)
        loss = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.losses(batch, generator)
        for index in range(training.accumulate):
            last = index == training.accumulate - 1
            with nullcontext() if last or not self.engine.parallel else self.engine.holding(self._network):
                part = next(parts)
                self.scaler.scale(part / training.accumulate).backward()
            loss += part.detach() / training.accumulate
        next(parts, None)  # what comes after the last part
        loss = self.engine.sum(loss) / self.engine.count  # every part has as many samples
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        for decay, average in self.averages.items():
            update_average(average, self.model, average_decay_at(self.step, decay))
        return {"loss": loss, "gradient_norm": norm, **self.figures}

    def forward(self, *inputs: Any) -> Any:
        """`trained_call` in the precision of the recipe, compiled if the recipe says so."""
        dtype = AUTOCAST.get(self.training.precision)
        # A pass casts each weight once, so keeping the cast is of no use, and of harm to graphs and shards: it would not be part of
        # the one, and hold the whole model beside the other.
        with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False):
            return self._network(*inputs)

    # The run

    @property
    def out_of_patience(self) -> bool:
        """Whether too many evaluations brought no new best."""
        patience = self.training.patience
        return patience is not None and self.best.waited >= patience

    def fit(self, max_steps: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Train to the end of the recipe, to `max_steps`, until no new best comes, or until `should_stop()`.

        It saves during the run and at its end.

        Raises:
            StarflowError: the loss is not finite; the last saved state stays.
        """
        training, last = self.training, min(self.total_steps, max_steps or self.total_steps)
        pending: list[dict[str, Tensor]] = []
        loss: float | None = None
        seconds, steps, all_seconds, all_steps, saved = 0.0, 0, 0.0, 0, -1
        if self.step == 0:
            self.before_first_step()
        kind = Journal if self.engine.rank == 0 else Silence
        with closing(self.batches), kind(self.folder, self.step, self.total_steps) as journal:
            clock = time.perf_counter()
            while self.step < last and not self.out_of_patience and not self.engine.any(should_stop()):
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
                    due["sample"] |= self._evaluate(journal, ends=self.step == last)
                if due["sample"]:
                    self.refresh_average()
                    self.engine.from_first(lambda: journal.picture(self.step, self.sample_sheet()))
                if due["checkpoint"] or self.out_of_patience:
                    self.save()
                    saved = self.step
                clock = time.perf_counter()
            if pending:
                loss = self._record(journal, pending)["loss"]
            if saved != self.step:
                self.save()
            interrupted = self.step < last and not self.out_of_patience
            if interrupted and self.step % training.sample_every:
                journal.picture(self.step, self.sample_sheet())
            if self.out_of_patience:
                journal.say(
                    f"step {self.step}: stopped, because {self.best.waited} evaluations brought nothing better than step"
                    f" {self.best.step}; checkpoint-best/ holds it"
                )
        speed_of_all = all_steps * training.batch_size / all_seconds if all_steps else None
        return Outcome(
            step=self.step,
            total_steps=self.total_steps,
            interrupted=interrupted,
            loss=loss,
            images_per_second=speed_of_all,
            stopped_early=self.out_of_patience,
            best_step=self.best.step,
            **self.metrics,
        )

    def _evaluate(self, journal: Journal | Silence, *, ends: bool) -> bool:
        """Judge the weights, choose the average, keep the best checkpoint; return whether it is a new one."""
        figures = {decay: self._judged(decay) for decay in self.averages}
        sign = 1 if self.LOWER_IS_BETTER else -1
        decay = min(figures, key=lambda decay: sign * _or_worst(figures[decay][self.CHOSEN_BY], sign))
        self.decay = decay
        self.refresh_average()
        self._measure(journal, "validation", figures[decay])
        if len(figures) > 1:
            self.metrics["ema_decay"] = decay
        # An evaluation that --max-steps brings forward must not use up the patience of a longer run.
        scheduled = self.step % self.training.evaluate_every == 0 or self.step == self.total_steps
        value = figures[decay][self.CHOSEN_BY]
        found = self.best.offer(self.step, value) if scheduled else False
        if found or ends or self.out_of_patience:
            self._measure(journal, "test", self.engine.from_first(lambda: self.judge(self.data.test)))
        if found:
            journal.say(f"step {self.step}: the best so far, kept in checkpoint-best/")
            self.engine.from_first(lambda: self.write_checkpoint(self.folder / "checkpoint-best", self._texts()))
        return found

    def _judged(self, decay: float) -> dict[str, float]:
        self.decay = decay
        self.refresh_average()
        return self.engine.from_first(lambda: self.judge(self.data.validation))

    def refresh_average(self) -> None:
        """Let `average` have the weights of the chosen average as they are now."""
        self.average = self.engine.whole(self.averages[self.decay])

    def _measure(self, journal: Journal | Silence, part: str, figures: Mapping[str, float]) -> None:
        """Keep and report the figures of a part."""
        named = {f"{part}_{name}": value for name, value in figures.items()}
        self.metrics |= {f"{part}_step": self.step, **named}
        journal.record(self.step, **named)
        told = ", ".join(f"{figures[name]:.4f} {unit}" for name, unit in self.UNITS.items())
        journal.say(f"step {self.step}: {part} {told}")

    def _record(self, journal: Journal | Silence, pending: list[dict[str, Tensor]]) -> dict[str, float]:
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
            "model": self.engine.model_state(self.model),
            "averages": {decay: self.engine.model_state(average) for decay, average in self.averages.items()},
            "best": self.best.state(),
            "optimizer": self.engine.optimizer_state(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "metrics": self.metrics,
            "objective": self.memory,
            **self.digests(),
        }
        self.refresh_average()
        self.engine.from_first(lambda: self._write(state))

    def _write(self, state: Mapping[str, Any]) -> None:
        with atomic_file(self.folder / "state.pt") as temporary:
            _save_state(state, temporary)
        self.write_checkpoint(self.folder / "checkpoint", self._texts())

    def _texts(self) -> dict[str, str]:
        """The text files of a checkpoint."""
        return {
            "recipe.yaml": yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False),
            "metrics.json": json.dumps({"step": self.step, **self.metrics}, indent=2) + "\n",
        }

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
        if "split" not in state:
            raise RecipeError(f"{path}: an earlier version began this run and held out other images; {ANOTHER}")
        for name, digest in self.digests().items():
            if state.get(name, digest) != digest:
                raise RecipeError(f"{path}: belongs to other data: the {name} changed; {ANOTHER}")
        self.engine.load(self.model, state["model"], self.optimizer, state["optimizer"])
        for decay, average in self.averages.items():
            self.engine.load(average, state["averages"][decay])
        self.best.restore(state["best"])
        self.scaler.load_state_dict(state["scaler"])
        self.restore_memory(state.get("objective", {}))
        self.step, self.metrics = state["step"], state["metrics"]
        self.decay = self.metrics.get("ema_decay", self.decay)
        self.refresh_average()
        return True


def _average_of(model: nn.Module) -> nn.Module:
    """A copy of a model, for its moving average; what does not learn is shared."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


def _or_worst(value: float, sign: int) -> float:
    """A figure that is no number is worse than any."""
    return sign * math.inf if math.isnan(value) else value


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
