"""Decode plans: what fits a bundle, how windows move, and what Jacobi chunks are as a plan."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Jacobi, Segment, Steps, Window, read_plan

TOKENS = {1: 16, 0: 16}


def plan(*segments: Segment, block: int = 1) -> DecodePlan:
    return DecodePlan(blocks=(BlockPlan(block=block, segments=segments),))


def test_a_block_that_is_not_named_is_decoded_token_by_token() -> None:
    assert plan(Chunk(tokens=16, passes=3)).segments(1, 16) == (Chunk(tokens=16, passes=3),)
    assert plan(Chunk(tokens=16, passes=3)).segments(0, 16) == (Steps(tokens=16),)
    both = DecodePlan(blocks=(BlockPlan(block=0, segments=(Steps(tokens=2),)), BlockPlan(block=1, segments=())))
    assert both.segments(1, 9) == () and both.segments(0, 9) == (Steps(tokens=2),)


@pytest.mark.parametrize(
    ("advances", "width", "tokens", "schedule"),
    [
        ((1, 2, 1, 2), 4, 6, ((0, 4), (1, 4), (3, 3), (4, 2))),
        ((4, 4), 4, 8, ((0, 4), (4, 4))),
        ((2, 1), 5, 3, ((0, 3), (2, 1))),
        ((2,), 2, 2, ((0, 2),)),
    ],
)
def test_a_window_runs_what_is_left_of_its_width(
    advances: tuple[int, ...], width: int, tokens: int, schedule: tuple[tuple[int, int], ...]
) -> None:
    assert Window(tokens=tokens, width=width, advances=advances).schedule() == schedule


def test_a_window_with_a_tolerance_has_no_schedule() -> None:
    assert Window(tokens=8, width=4, tolerance=0.1).schedule() == ()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "either advances or a tolerance"),
        ({"advances": (4, 4), "tolerance": 0.1}, "either advances or a tolerance"),
        ({"advances": (4, 3)}, "add up to 7.* 8 tokens"),
        ({"advances": (4, 4, 1)}, "add up to 9.* 8 tokens"),
        ({"advances": (5, 3)}, "between 1 and the width, 4"),
        ({"advances": (4, 0, 4)}, "between 1 and the width, 4"),
        ({"advances": (4, 5, -1)}, "between 1 and the width, 4"),
        ({"tolerance": -0.1}, "greater than or equal to 0"),
        ({"width": 1, "tolerance": 0.1}, "greater than or equal to 2"),
        ({"tokens": 0, "tolerance": 0.1}, "greater than or equal to 1"),
        ({"tolerance": 0.1, "expected": 0.0}, "greater than 0"),
    ],
)
def test_windows_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Window.model_validate({"tokens": 8, "width": 4} | fields)
    assert Window(tokens=8, width=2, tolerance=0.0).tolerance == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"tokens": 0}, "equal to 1"), ({"passes": 0}, "equal to 1"), ({"tolerance": -1.0}, "equal to 0"),
     ({"expected": 0.0}, "greater than 0"), ({"guess": "ones"}, "zeros"), ({"norm": "min"}, "max"),
     ({"converged": "token"}, "batch"), ({"caches": "none"}, "exact")],
)  # fmt: skip
def test_chunks_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Chunk.model_validate({"tokens": 4, "passes": 2} | fields)
    assert Chunk(tokens=1, passes=1, tolerance=0.0).tolerance == 0
    with pytest.raises(ValidationError, match="equal to 1"):
        Steps(tokens=0)
    assert Steps(tokens=1).tokens == 1
    with pytest.raises(ValidationError, match="equal to 0"):
        BlockPlan(block=-1, segments=())


def test_what_a_chunk_is_unless_told_otherwise() -> None:
    chunk = Chunk(tokens=4, passes=2)
    assert chunk.model_dump() == {
        "kind": "chunk", "tokens": 4, "passes": 2, "tolerance": None, "norm": "mean-square", "converged": "image",
        "guess": "noise", "caches": "reference", "expected": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "batch", "says"),
    [
        (plan(Chunk(tokens=16, passes=3)), 4, None),
        (plan(Chunk(tokens=8, passes=3), Steps(tokens=8)), 4, None),
        (plan(Window(tokens=16, width=8, tolerance=0.1)), 1, None),
        (plan(Window(tokens=16, width=8, advances=(8, 8))), 4, None),
        (plan(Window(tokens=16, width=64, tolerance=0.1)), 1, None),
        (plan(Steps(tokens=16), block=7), 1, r"flow block 7 .*\[0, 1\]"),
        (DecodePlan(blocks=2 * plan(Steps(tokens=16)).blocks), 1, "flow block 1 .* 2 times"),
        (plan(Steps(tokens=15)), 1, "flow block 1 .* 15 .* 16"),
        (plan(Steps(tokens=9), Chunk(tokens=8, passes=1)), 1, "flow block 1 .* 17 .* 16"),
        (plan(Window(tokens=16, width=8, tolerance=0.1)), 2, "flow block 1 .*tolerance.* batch of 2"),
    ],
)
def test_what_fits_a_bundle(found: DecodePlan, batch: int, says: str | None) -> None:
    misfit = found.misfit(TOKENS, 16, batch)
    if says is None:
        assert misfit is None
    else:
        assert re.search(says, str(misfit))


@pytest.mark.parametrize(
    ("segments", "width"),
    [
        ((Steps(tokens=16),), 1),
        ((Chunk(tokens=10, passes=1), Steps(tokens=6)), 10),
        ((Window(tokens=12, width=5, tolerance=0.1), Steps(tokens=4)), 5),
        ((Window(tokens=3, width=9, tolerance=0.1), Steps(tokens=13)), 3),
    ],
)
def test_the_widest_run_must_be_one_the_bundle_has(segments: tuple[Segment, ...], width: int) -> None:
    found = plan(*segments)
    assert found.misfit(TOKENS, width, 1) is None
    if width > 1:
        misfit = found.misfit(TOKENS, width - 1, 1)
        assert misfit == f"flow block 1 has a run of {width} tokens; this bundle was exported for 1 to {width - 1}"


def test_jacobi_chunks_cover_every_block() -> None:
    found = Jacobi(6, threshold=0.5, max_iterations=9).plan({2: 16, 0: 5})
    assert [(block.block, [segment.tokens for segment in block.segments]) for block in found.blocks] == [
        (2, [6, 6, 4]),
        (0, [5]),
    ]
    for segment in (*found.blocks[0].segments, *found.blocks[1].segments):
        assert segment == Chunk(tokens=segment.tokens, passes=9, tolerance=0.5, converged="batch")
    assert Jacobi(1).plan({0: 2}).blocks[0].segments[0] == Chunk(tokens=1, passes=32, tolerance=1e-3, converged="batch")
    assert Jacobi(8, threshold=0.0, max_iterations=1).plan({0: 8}).blocks[0].segments[0].tokens == 8


@pytest.mark.parametrize("values", [(0, 1e-3, 1), (4, 1e-3, 0), (4, -1e-3, 1), (4, float("nan"), 1)])
def test_jacobi_values_out_of_range(values: tuple[int, float, int]) -> None:
    with pytest.raises(UsageError, match=rf"Jacobi.*{values[0]}.*{values[2]}"):
        Jacobi(*values).plan({0: 8})


def test_plans_are_read_from_their_own_json(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    found = plan(Chunk(tokens=4, passes=2, guess="zeros"), Window(tokens=8, width=4, advances=(4, 4)), Steps(tokens=4))
    path.write_text(found.model_dump_json(exclude_none=True))
    assert read_plan(path) == found
    for field, meant in (
        ("advanses", "advances"),
        ("tolerence", "tolerance"),
        ("segment", "segments"),
        ("block", "blocks"),
    ):
        broken = json.loads(found.model_dump_json(exclude_none=True))
        if field == "block":
            broken = {"block": broken["blocks"]}
        elif field == "segment":
            broken["blocks"][0]["segment"] = broken["blocks"][0].pop("segments")
        else:
            broken["blocks"][0]["segments"][1][field] = 1
        path.write_text(json.dumps(broken))
        with pytest.raises(UsageError, match=meant):
            read_plan(path)
    with pytest.raises(UsageError, match="auto, sequential"):
        read_plan(tmp_path / "none.json")
