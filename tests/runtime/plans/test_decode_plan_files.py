"""Plans from files and manifests: what is refused, in one line, and which one is taken."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from starflow.runtime import Bundle, DecodePlan, Sampler
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.bundle.bundle import changing_manifest, replace_manifest
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plans.calibrated_decode_plan import (
    BlockCost,
    CalibratedDecodePlan,
    RunCost,
    predicted_milliseconds,
)
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk
from tests.edited_manifest import edit_manifest

GOOD = {"blocks": [{"block": 1, "segments": [{"kind": "chunk", "tokens": 16, "passes": 3}]}]}


def with_segments(*segments: dict[str, Any], block: int = 1) -> dict[str, Any]:
    return {"blocks": [{"block": block, "segments": list(segments)}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (json.dumps([]), "expected named fields"),
        (json.dumps({"block": []}), "blocks"),
        (json.dumps(GOOD | {"name": "x"}), "unknown field name"),
        (json.dumps(with_segments({"kind": "leap", "tokens": 16})), "leap"),
        (
            json.dumps(with_segments({"kind": "chunk", "tokens": 16, "passes": 3, "gess": "zeros"})),
            "did you mean guess",
        ),
        (json.dumps(with_segments({"kind": "chunk", "tokens": 16, "passes": 0})), "found 0, expected 1 or more"),
        (json.dumps(with_segments({"kind": "steps", "tokens": 15})), "have 15 tokens, the block has 16"),
        (json.dumps(with_segments({"kind": "steps", "tokens": 16}, block=7)), "flow block 7"),
        (json.dumps({"blocks": 2 * GOOD["blocks"]}), "occurs 2 times"),
        (json.dumps(with_segments({"kind": "window", "tokens": 16, "width": 4})), "either advances or a tolerance"),
        (
            json.dumps(with_segments({"kind": "window", "tokens": 16, "width": 4, "advances": [4, 4]})),
            "add up to 8, the window has 16 tokens",
        ),
        (json.dumps(with_segments({"kind": "window", "tokens": 16, "width": 4, "advances": [8, 8]})), "the width, 4"),
        (
            json.dumps(with_segments({"kind": "window", "tokens": 16, "width": 4, "tolerance": 1e-3})),
            "for a batch of 1",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tiny_bundle: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        Sampler.open(tiny_bundle, plan=path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_run_wider_than_the_bundle_allows_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(tiny_bundle, narrow)
    edit_manifest(narrow, lambda manifest: manifest.update(max_chunk=8))
    with pytest.raises(UsageError, match="flow block 1 has a run of 16 tokens; this bundle was exported for 1 to 8"):
        Sampler.open(narrow, plan=DecodePlan.model_validate(GOOD))


def test_the_command_line_takes_files_and_refuses_bad_ones(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD))
    sample = ["sample", str(tiny_bundle), "--out", str(tmp_path / "x.png"), "--json", "--plan"]
    assert main([*sample, str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["decoding"] == "by plan"
    assert main([*sample, "sequential"]) == 0
    assert json.loads(capsys.readouterr().out)["decoding"] == "sequential"
    assert main([*sample, str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err


def spec(**changes: Any) -> CalibratedDecodePlan:
    costs = tuple(
        BlockCost(
            block=block,
            prefill_milliseconds=0.5,
            step_milliseconds=1.0,
            runs=(RunCost(tokens=8, milliseconds=2.0), RunCost(tokens=16, milliseconds=4.0)),
        )
        for block in (1, 0)
    )
    values: dict[str, Any] = {
        "backend": "onnxruntime cpu",
        "variant": "cpu-fp32",
        "budget": 1e-3,
        "error": 5e-4,
        "images": 8,
        "guidance": 1.0,
        "passes": 19.0,
        "predicted_milliseconds": 29.0,
        "milliseconds": 30.0,
        "sequential_milliseconds": 40.0,
        "costs": costs,
        "blocks": DecodePlan.model_validate(GOOD).blocks,
    }
    return CalibratedDecodePlan.model_validate(values | changes)


@pytest.fixture
def planned_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    root = tmp_path / "planned"
    shutil.copytree(tiny_bundle, root)
    bundle = Bundle.open(root)
    with changing_manifest(bundle) as manifest:
        replace_manifest(bundle, manifest.model_copy(update={"plans": (spec(),)}))
    return root


def test_auto_takes_the_plan_of_its_variant(planned_bundle: Path) -> None:
    for variant, plan, expected in (
        ("cpu-fp32", "auto", spec().plan),
        ("portable-fp32", "auto", SEQUENTIAL),
        ("cpu-fp32", "sequential", SEQUENTIAL),
    ):
        with Sampler.open(planned_bundle, variant=variant, plan=plan, threads=1) as sampler:
            assert sampler.plan == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "cpu-fp8"}, "variant cpu-fp8"),
        ({"blocks": (BlockPlan(block=1, segments=(Chunk(tokens=8, passes=1),)),)}, "have 8 tokens, the block has 16"),
    ],
)
def test_a_stored_plan_must_fit_its_bundle(planned_bundle: Path, changes: dict[str, Any], message: str) -> None:
    edit_manifest(planned_bundle, lambda manifest: manifest.update(plans=[spec(**changes).model_dump(mode="json")]))
    with pytest.raises(BundleError, match=message):
        Bundle.open(planned_bundle)


def test_prediction_adds_up_costs() -> None:
    tokens = {1: 16, 0: 16}
    prefill = 2 * 0.5
    assert predicted_milliseconds(SEQUENTIAL, spec().costs, tokens) == pytest.approx(prefill + 32)
    assert predicted_milliseconds(spec().plan, spec().costs, tokens) == pytest.approx(prefill + 3 * 4 + 16)
    window = {"kind": "window", "tokens": 16, "width": 12, "advances": [4, 12]}  # 12 lies between 8 and 16
    plan = DecodePlan.model_validate(with_segments(window))
    assert predicted_milliseconds(plan, spec().costs, tokens) == pytest.approx(prefill + 2 * 3 + 16)
    unknown = DecodePlan.model_validate(with_segments({"kind": "chunk", "tokens": 16, "passes": 9, "tolerance": 0.1}))
    assert predicted_milliseconds(unknown, spec().costs, tokens) is None


def test_bench_measures_a_plan_beside_sequential_decoding(
    planned_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(planned_bundle), "--variants", "cpu-fp32", "--repetitions", "2", "--threads", "1"]
    assert main([*command, "--json"]) == 0
    sequential, planned = json.loads(capsys.readouterr().out)["variants"]
    assert (sequential["decoding"], sequential["error"], sequential["rows"][-1]["passes"]) == ("sequential", None, 32)
    assert (planned["decoding"], planned["rows"][-1]["passes"]) == ("plan", 19)
    assert planned["predicted_milliseconds"] == pytest.approx(29.0)
    assert 0 < planned["error"] < 1
    assert planned["rows"][0]["bytes"] == pytest.approx(sequential["rows"][0]["bytes"] * 3 / 16, rel=1e-6)
    assert main(command) == 0
    printed = capsys.readouterr().out
    (row,) = (line.split() for line in printed.splitlines() if "by its plan" in line)
    assert row[-2] == "19" and "plan: predicted 29.0 ms, measured" in printed
