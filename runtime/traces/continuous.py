"""Traces of continuous flows: the state after every step of an integration."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.continuous_runner import ContinuousRunner
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.continuous.integration_loop import plan_table, states
from starflow.runtime.continuous.loop import continuous_inputs
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.integration_plan import FixedSteps
from starflow.runtime.traces.case import Case


def path_states(bundle: Bundle, backend: Backend, case: Case, plan: FixedSteps) -> NDArray:
    """The state after every step, [N, steps, D]; what is not finite is kept."""
    batches = [
        np.stack(
            [state.reshape(len(state), -1) for state in states(runner, case.noise[part], plan_table(plan))], axis=1
        )
        for part, runner in condition_batches(bundle, backend, case)
    ]
    return np.concatenate(batches)


def condition_batches(bundle: Bundle, backend: Backend, case: Case) -> Iterator[tuple[slice, ContinuousRunner]]:
    """The runner, told of the conditions of one batch after the other."""
    runner, manifest, guidance = backend.continuous_runner(), bundle.continuous, Guidance(case.guidance)
    conditions = encode_conditions(
        manifest.conditioning, len(case.noise), case.condition, case.null_condition, guided=guidance.weight > 0
    )
    for start in range(0, len(case.noise), manifest.batch):
        part = slice(start, start + manifest.batch)
        runner.condition(continuous_inputs(manifest, conditions.part(np.arange(len(case.noise))[part]), guidance))
        yield part, runner
