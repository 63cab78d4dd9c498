"""The path of a continuous flow from noise to data, compared step by step.

A trace holds the state after every step of `PLAN`, each as one vector. With inputs `given`, every step starts from the
reference's state, and what is compared is the mean velocity of the step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.subject import Found, Part, Subject
from starflow.export.verification.tolerances import Kind
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.continuous.integration_loop import plan_table, states
from starflow.runtime.ode.fixed_step import walk
from starflow.runtime.plans.integration_plan import default_plan
from starflow.runtime.traces.case import Case, Trace, finite
from starflow.runtime.traces.continuous import condition_batches, path_states

PLAN = default_plan()


class ContinuousSubject(Subject):
    """The steps of one integration, as the tokens of one part."""

    parts: Mapping[int, Part] = {0: Part("the path", unit="step")}
    kinds: Mapping[Kind, str] = {
        "given": "Every step starts from the reference's state, and its mean velocity is compared. Nothing a route computes is "
        "fed back to it beyond the step: this is the error of the arithmetic alone.",
        "sample": f"The whole integration, {PLAN}: every error is carried on to all that follows.",
    }

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._manifest = bundle, bundle.continuous
        model = self._manifest.model
        self.model = f"{model.family}, {model.network}, {model.parameters:,} parameters"

    def trace(self, variant: Variant, backend: Backend, case: Case) -> Trace:
        return Trace({0: path_states(self._bundle, backend, case, PLAN)})

    def model_trace(self, model: Any, case: Case, conditions: tuple[Any, Any]) -> Trace:
        """Integrate the model's velocity in NumPy."""
        import torch

        def velocity(x: NDArray, time: float) -> NDArray:
            t = torch.full((len(x),), time)
            with torch.no_grad():
                v: NDArray = model.guided(torch.from_numpy(x), t, *conditions, case.guidance).numpy()
            return v

        path = [x.reshape(len(x), -1) for x in walk(velocity, case.noise, plan_table(PLAN))]
        return Trace({0: np.stack(path, axis=1)})

    def run(
        self, variant: Variant, backend: Backend, case: Case, expected: Trace, on_part: Callable[[Part], None]
    ) -> Found:
        sample = self.trace(variant, backend, case)
        on_part(self.parts[0])
        table = plan_table(PLAN).reshape(PLAN.steps, -1, 4)
        before = _before(expected, case)
        after = np.empty_like(before)
        for part, runner in condition_batches(self._bundle, backend, case):
            for step, passes in enumerate(table):
                start = before[part, step].reshape(case.noise[part].shape)
                (state,) = states(runner, start, passes)
                after[part, step] = state.reshape(len(state), -1)
        return {"given": {0: _velocities(before, after)}, "sample": sample.tokens}

    def expected(self, kind: Kind, trace: Trace, case: Case) -> Mapping[int, NDArray]:
        if kind == "sample":
            return trace.tokens
        return {0: _velocities(_before(trace, case), trace.tokens[0])}

    def data(self, trace: Trace) -> NDArray:
        return trace.tokens[0][:, -1].reshape(-1, *self._manifest.model.data_shape)

    def load(self, variant: Variant, backend: Backend) -> None:
        backend.continuous_runner()


def _before(trace: Trace, case: Case) -> NDArray:
    """The state before every step, [N, steps, D]."""
    return np.concatenate([case.noise.reshape(len(case.noise), 1, -1), finite(trace.tokens[0])[:, :-1]], axis=1)


def _velocities(before: NDArray, after: NDArray) -> NDArray:
    """Mean velocity of every step, [N, steps, D]."""
    with np.errstate(invalid="ignore"):
        return (after - before) / np.diff(np.array(PLAN.times, np.float32))[:, None]
