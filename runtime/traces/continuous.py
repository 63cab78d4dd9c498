"""Traces of continuous flows: the state after every step of an integration."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.continuous_runner import ContinuousRunner
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.continuous.integration_loop import plan_table, states
from starflow.runtime.continuous.loop import continuous_inputs
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.integration_plan import FixedSteps
from starflow.runtime.traces.case import Case


def path_states(bundle: Bundle, backend: Backend, case: Case, plan: FixedSteps) -> NDArray:
    """The state after every step, [N, steps, D]; NaN and infinity are kept."""
    batches = [
        np.stack(
            [state.reshape(len(state), -1) for state in states(runner, case.noise[part], plan_table(plan))], axis=1
        )
        for part, runner in condition_batches(bundle, backend, case)
    ]
    return np.concatenate(batches)


def condition_batches(bundle: Bundle, backend: Backend, case: Case) -> Iterator[tuple[slice, ContinuousRunner]]:
    """The runner with the conditions of each batch set, one batch after the other."""
    runner, manifest = backend.continuous_runner(), bundle.continuous
    guidance = [Guidance(case.guidance)] * manifest.batch
    conditions = case.conditions(manifest.conditioning)
    for part, index in batches(len(case.noise), manifest.batch):
        runner.condition(continuous_inputs(manifest, conditions.part(index), guidance))
        yield part, runner
