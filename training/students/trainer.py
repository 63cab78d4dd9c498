"""Training a student: towards the tokens of the exact sampler, their distribution, and what its teacher knows of them."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plain.images import grid, to_uint8
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.data.samples import Batch, Dataset, Samples
from starflow.training.layers.transformer import Layer
from starflow.training.random_streams import SAMPLES, generator_for
from starflow.training.recipe import StudentRecipe
from starflow.training.runs.run import TrainingRun
from starflow.training.students.config import StudentConfig
from starflow.training.students.folder import save_student
from starflow.training.students.network import Made, Student
from starflow.training.students.pairs import Pairs
from starflow.training.students.teacher import Teacher

COLUMNS = 10  # of a sheet


class StudentRun(TrainingRun):
    """One distillation. Its checkpoint is the student's folder."""

    UNITS: ClassVar = {
        "objective": "objective",
        "divergence": "nats/value from the teacher",
        "pair_error": "from its tokens",
    }
    # Neither part alone: one is least for the mean of all that could be, the other hardly higher for one mode of it.
    CHOSEN_BY: ClassVar = "objective"
    LOWER_IS_BETTER: ClassVar = True
    recipe: StudentRecipe
    model: Student
    average: Student

    def __init__(
        self,
        recipe: StudentRecipe,
        config: StudentConfig,
        flow: AutoregressiveFlow,
        data: Dataset,
        table: Tensor | None,
        folder: Path,
    ) -> None:
        """Prepare a distillation.

        Args:
            flow: The teacher.
            data: `Pairs`; `null` is its null condition, as the model takes it.
            table: [N, m, width] features that conditions are rows of; None for classes and without conditions.

        Raises:
            RecipeError: the recipe does not fit the data or this machine.
        """
        self.config = config
        super().__init__(recipe, data, folder, lambda: Student.beginner(config, flow))
        self.flow = flow.to(self.device).requires_grad_(False)
        self.teacher = Teacher(self.flow, config.block)
        self.density = recipe.objective.density_of(deep=self.teacher.deep)  # weight of the divergence
        self._table = None if table is None else table.to(self.device)
        self._null = None if data.null is None else data.null.to(self.device)
        # log p of the training pairs' noise, [N]; NaN until it is known
        self._of_noise = torch.full((len(data.train),), math.nan, device=self.device)

    def trained_call(self) -> Callable[..., Any]:
        return self.model.transform

    def layers(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, Layer)]

    # One step

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        objective, pairs = self.recipe.objective, self.samples
        assert isinstance(pairs, Pairs) and pairs.guidance is not None
        index = self.batches.indices(self.step)
        weights, index = pairs.guidance[index].to(self.device), index.to(self.device)
        with_density = self.density > 0 and self.step >= objective.density_from
        self.figures.clear()
        for part in torch.arange(len(weights), device=self.device).split(self.part_size):
            noise, tokens = batch.values[part].unbind(1)
            condition = self.conditions(batch.condition, part)
            made: Made = self.forward(noise, condition, weights[part])
            error = (made.tokens - tokens).square().mean()
            surprise = made.surprise(noise, tokens).mean()
            loss = objective.pairs * error + objective.likelihood * surprise
            self._count("pair_error", error)
            self._count("surprise", surprise)
            if objective.hidden:
                hidden = made.misalignment(self.teacher.states(tokens, condition))
                loss = loss + objective.hidden * hidden
                self._count("hidden", hidden)
            if with_density:
                of_noise = self._of_pairs(index[part], noise, condition, weights[part])
                divergence = self.divergence(made, noise, condition, weights[part], of_noise).mean()
                loss = loss + self.density * divergence
                self._count("divergence", divergence)
            yield loss

    def _count(self, name: str, value: Tensor) -> None:
        self.figures[name] = self.figures.get(name, 0) + value.detach() / self.training.accumulate

    def conditions(self, chosen: Tensor | None, part: Tensor) -> Tensor | None:
        """The conditions of a part of a batch as the model takes them."""
        if chosen is None:
            return None
        return self.flow.encode_labels(chosen[part]) if self._table is None else self._table[chosen[part]]

    def _of_pairs(self, index: Tensor, noise: Tensor, condition: Tensor | None, weights: Tensor) -> Tensor:
        """log p of the noise of training pairs, [B]: computed once for each, since it takes a pass through every block above."""
        if self._of_noise[index].isnan().any():
            self._of_noise[index] = self._noise_log_density(noise, condition, weights)
        return self._of_noise[index]

    @torch.no_grad()
    def _noise_log_density(self, noise: Tensor, condition: Tensor | None, weights: Tensor) -> Tensor:
        return self.teacher.noise_log_density(noise, condition, self._null, weights)

    def divergence(
        self,
        made: Made,
        noise: Tensor,
        condition: Tensor | None,
        weights: Tensor,
        of_noise: Tensor | None = None,
    ) -> Tensor:
        """log q - log p of what was made, [B] nats per value: its mean is KL(student || teacher).

        `of_noise` [B] is log p of the noise, if it is known.
        """
        if of_noise is None:
            of_noise = self._noise_log_density(noise, condition, weights)
        log_q = of_noise - made.log_sigma.sum((1, 2))
        return (log_q - self.teacher.log_density(made.tokens, condition, self._null, weights)) / noise[0].numel()

    # The run

    @torch.no_grad()
    def judge(self, samples: Samples) -> dict[str, float]:
        assert isinstance(samples, Pairs) and samples.guidance is not None
        divergence, error, energy, surprise = 0.0, 0.0, 0.0, 0.0
        for part in torch.arange(len(samples)).split(self.part_size):
            noise, tokens = samples[part].to(self.device).values.unbind(1)
            condition = samples.condition
            assert condition is None or isinstance(condition, Tensor)
            given = self.conditions(None if condition is None else condition.to(self.device), part.to(self.device))
            guidance = samples.guidance[part].to(self.device)
            made = self.average.transform(noise, given, guidance)
            divergence += float(self.divergence(made, noise, given, guidance).sum())
            error += float((made.tokens - tokens).square().sum())
            energy += float(tokens.square().sum())
            surprise += float(made.surprise(noise, tokens).sum())
        weights, values = self.recipe.objective, samples.tensor[:, 0].numel()
        divergence /= len(samples)
        error, energy, surprise = (total / values for total in (error, energy, surprise))
        return {
            "objective": weights.pairs * error + weights.likelihood * surprise + self.density * divergence,
            "divergence": divergence,
            "surprise": surprise,
            "pair_error": (error / energy) ** 0.5,
        }

    @torch.no_grad()
    def sample_sheet(self) -> NDArray[np.uint8]:
        """Rows in turn: what the teacher makes of noise, and what the student makes of the same."""
        generator = generator_for(self.training.seed, SAMPLES, 0, self.device)
        noise = torch.randn(self.flow.noise_shape(2 * COLUMNS), generator=generator, device=self.device)
        count = len(noise)
        pairs = self.data.validation
        every = torch.arange(count) % len(pairs)
        condition = pairs.condition
        assert condition is None or isinstance(condition, Tensor)
        if condition is not None:
            known = torch.unique(condition)
            chosen = known[torch.arange(count) % len(known)] if self._table is None else condition[every]
            condition = self.conditions(chosen.to(self.device), torch.arange(count, device=self.device))
        weight = Guidance(self.config.middle_guidance)
        null = None if self._null is None else self._null[None]
        made = [
            self.flow.reverse(noise, condition, null, guidance=weight, students=students)
            for students in (None, {self.config.block: self.average})
        ]
        rows = torch.stack([each.unflatten(0, (-1, COLUMNS)) for each in made], dim=1).flatten(0, 2)
        return grid(to_uint8(rows[:, : 3 if rows.shape[1] >= 3 else 1].float().cpu().numpy()), COLUMNS)

    def write_checkpoint(self, folder: Path, extra_files: Mapping[str, str]) -> None:
        save_student(folder, self.average, self.config, extra_files)
