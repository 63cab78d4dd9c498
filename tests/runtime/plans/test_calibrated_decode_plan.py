"""Predicted passes and times, added up by hand."""

from typing import Any

import pytest
from pydantic import ValidationError

from starflow.runtime.plans.calibrated_decode_plan import (
    BlockCost,
    CalibratedDecodePlan,
    RunCost,
    predicted_milliseconds,
    segment_milliseconds,
    segment_passes,
)
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Segment, Steps, Window

COST = BlockCost(
    block=1,
    prefill_milliseconds=5.0,
    step_milliseconds=1.0,
    runs=(RunCost(tokens=3, milliseconds=2.0), RunCost(tokens=7, milliseconds=4.0)),
)


@pytest.mark.parametrize(("tokens", "milliseconds"), [(1, 1.0), (2, 1.5), (3, 2.0), (5, 3.0), (7, 4.0), (9, 4.0)])
def test_between_two_widths_a_pass_costs_what_lies_between(tokens: int, milliseconds: float) -> None:
    assert COST.run(tokens) == pytest.approx(milliseconds)


def test_without_measured_passes_every_token_costs_a_step() -> None:
    assert COST.model_copy(update={"runs": ()}).run(6) == 6.0
    assert BlockCost(block=0, prefill_milliseconds=0, step_milliseconds=2.0, runs=()).run(1) == 2.0


@pytest.mark.parametrize(
    ("segment", "passes", "milliseconds"),
    [
        (Steps(tokens=4), 4, 4.0),
        (Chunk(tokens=7, passes=3), 3, 12.0),
        (Chunk(tokens=5, passes=2), 2, 6.0),
        (Chunk(tokens=7, passes=3, caches="exact"), 4, 16.0),
        (Chunk(tokens=3, passes=3, caches="exact"), 3, 6.0),
        (Chunk(tokens=7, passes=6, tolerance=0.1), None, None),
        (Chunk(tokens=7, passes=6, tolerance=0.1, expected=2.5), 2.5, 10.0),
        (Window(tokens=9, width=3, tolerance=0.1), None, None),
        (Window(tokens=9, width=3, tolerance=0.1, expected=5.0), 5.0, 10.0),
        (Window(tokens=2, width=3, tolerance=0.1, expected=2.0), 2.0, 3.0),
        # Passes over 3, 3, 3 and 1 tokens.
        (Window(tokens=6, width=3, advances=(1, 2, 2, 1)), 4, 2.0 + 2.0 + 2.0 + 1.0),
        (Window(tokens=6, width=3, advances=(1, 2, 2, 1), expected=4.0), 4.0, 7.0),
    ],
)
def test_a_segment(segment: Segment, passes: float | None, milliseconds: float | None) -> None:
    assert segment_passes(segment) == passes
    assert segment_milliseconds(segment, COST) == (None if milliseconds is None else pytest.approx(milliseconds))


def test_a_plan_adds_up_prefill_and_segments_of_every_block() -> None:
    other = COST.model_copy(update={"block": 0, "step_milliseconds": 3.0})
    plan = DecodePlan(blocks=(BlockPlan(block=1, segments=(Chunk(tokens=7, passes=2), Steps(tokens=2))),))
    assert predicted_milliseconds(plan, (COST, other), {1: 9, 0: 4}) == pytest.approx(5 + 8 + 2 + 5 + 12)
    assert predicted_milliseconds(plan, (COST,), {1: 9, 0: 4}) is None
    assert predicted_milliseconds(plan, (COST, other), {1: 9}) is None
    unknown = DecodePlan(blocks=(BlockPlan(block=0, segments=(Chunk(tokens=4, passes=2, tolerance=0.1),)),))
    assert predicted_milliseconds(unknown, (COST, other), {1: 9, 0: 4}) is None


def spec(**changes: Any) -> CalibratedDecodePlan:
    values: dict[str, Any] = {
        "backend": "onnxruntime cpu", "variant": "cpu-fp32", "budget": 1e-3, "error": 0.0, "images": 1, "guidance": 0.0,
        "passes": 1.0, "predicted_milliseconds": 1.0, "milliseconds": 1.0, "sequential_milliseconds": 2.0,
        "costs": (COST,), "blocks": (BlockPlan(block=1, segments=(Steps(tokens=9),)),),
    }  # fmt: skip
    return CalibratedDecodePlan.model_validate(values | changes)


def test_a_stored_plan_states_what_it_was_measured_to_do() -> None:
    assert spec().plan == DecodePlan(blocks=spec().blocks)
    for name in ("budget", "images", "passes", "predicted_milliseconds", "milliseconds", "sequential_milliseconds"):
        with pytest.raises(ValidationError, match=name):
            spec(**{name: 0})
        assert getattr(spec(**{name: 1}), name) == 1
    for name in ("error", "guidance"):
        with pytest.raises(ValidationError, match=name):
            spec(**{name: -1e-9})
    for name in ("prefill_milliseconds", "step_milliseconds", "block"):
        with pytest.raises(ValidationError, match=name):
            BlockCost.model_validate(COST.model_dump() | {name: -1})
        assert getattr(BlockCost.model_validate(COST.model_dump() | {name: 0}), name) == 0
    with pytest.raises(ValidationError, match="tokens"):
        RunCost(tokens=0, milliseconds=1.0)
    with pytest.raises(ValidationError, match="milliseconds"):
        RunCost(tokens=1, milliseconds=-1.0)
    assert RunCost(tokens=1, milliseconds=0.0).milliseconds == 0
