"""Continuous flows behind the sampler: rows of conditions, choice of the plan, and checks of a request."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.continuous_runner import ContinuousInputs
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.conditions import Conditions
from starflow.runtime.continuous.integration_loop import integrate_batch
from starflow.runtime.family import Inverted, Request, no_guidance
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps, default_plan, read_integration_plan

WORK = 1000  # the units of progress from noise to data


class ContinuousLoop:
    """Integrates a bundle's velocity by an integration plan; a `FamilyLoop`.

    Plan None takes the plan stored for the backend and variant, or `default_plan` if there is none.
    """

    work = WORK

    def __init__(
        self, bundle: Bundle, variant: Variant, backend: Backend, plan: FixedSteps | AdaptiveSteps | None
    ) -> None:
        self._manifest, self._backend = bundle.continuous, backend
        stored = self._manifest.plan_for(backend.name, variant.name)
        self.plan: FixedSteps | AdaptiveSteps = plan or (stored.plan if stored else default_plan())

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self._manifest.model.data_shape

    @property
    def decoding(self) -> str:
        return str(self.plan)

    def load(self) -> None:
        self._backend.continuous_runner()

    def check(self, request: Request) -> None:
        if request.attention_temperature != 1.0:
            raise UsageError("attention temperature is for autoregressive flows; leave it out")
        for guidance in set(request.guidance):
            if guidance != Guidance(guidance.weight, interval=guidance.interval):
                raise UsageError(
                    "guidance of a continuous flow takes a weight and an interval; the other options are for STARFlow and TARFlow"
                )
            if guidance.weight and not self._manifest.guided:
                raise no_guidance(self._manifest, guidance.weight)

    def run(
        self, noise: NDArray, conditions: Conditions, request: Request, count: int, on_work: Callable[[int], None]
    ) -> NDArray[np.float32]:
        done = 0

        def on_time(time: float) -> None:
            nonlocal done
            part = max(0, int(time * WORK) - done)
            done += part
            on_work(part)

        runner = self._backend.continuous_runner()
        runner.condition(continuous_inputs(self._manifest, conditions, request.guidance))
        result = integrate_batch(runner, noise, self.plan, on_time, request.guidance)
        on_work(WORK - done)
        if request.on_passes:
            request.on_passes(0, result.passes)
        if request.on_block:
            request.on_block(0, result.x[:count])
        return result.x

    def invert(self, x: NDArray, conditions: Conditions) -> Inverted:
        raise UsageError(
            "a bundle of a continuous flow cannot invert data; use starflow.training.continuous.likelihood with the checkpoint"
        )


def continuous_inputs(
    manifest: ContinuousManifest, conditions: Conditions, guidance: Sequence[Guidance]
) -> ContinuousInputs:
    """The inputs of the graph besides its state, with [conditional, null] rows if it is guided."""
    condition, label = conditions.tokens, conditions.labels
    if manifest.guided and condition is not None and conditions.null_tokens is not None:
        condition = np.concatenate([condition, conditions.null_tokens])
    if manifest.guided and label is not None:
        label = np.concatenate([label, np.full(manifest.batch, conditions.null_label, np.int64)])
    return ContinuousInputs(condition, label, np.array([each.weight for each in guidance], np.float32))


def resolve_integration_plan(manifest: ContinuousManifest, plan: object) -> FixedSteps | AdaptiveSteps | None:
    """The integration plan for a value that `Sampler.open` takes, None for `auto`; UsageError if it is none."""
    if isinstance(plan, FixedSteps | AdaptiveSteps):
        return plan
    if plan == "auto":
        return None
    if isinstance(plan, str | os.PathLike) and plan != "sequential":
        return read_integration_plan(Path(plan))
    raise UsageError(
        f"plan {plan} is for autoregressive flows; this bundle takes auto, a file, or --solver and --steps"
    )
