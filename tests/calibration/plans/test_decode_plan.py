"""Calibration on models whose answer is known: one without context, and one of random weights."""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from starflow.calibration.cases import draw_cases
from starflow.calibration.commands.calibrate import configure, run
from starflow.calibration.plans.candidates import block_curve, paying_passes
from starflow.calibration.plans.convergence import BlockProbe, WindowTrial, envelope, probes
from starflow.calibration.plans.decode_plan import DecodeCalibration, calibrate_plan
from starflow.calibration.plans.decode_plan_report import decode_report
from starflow.calibration.plans.runs import PlanOptions
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Bundle, Sampler
from starflow.runtime.backends.choice import open_backend
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.calibrated_decode_plan import BlockCost, RunCost
from starflow.runtime.plans.decode_plan import Chunk, Steps, Window
from starflow.runtime.traces.case import draw_case
from starflow.training.checkpoint import save_checkpoint
from starflow.training.families import build_flow
from tests.models import class_config, contextless, patches_config, randomise


@contextmanager
def probed(root: Path, images: int = 4) -> Iterator[dict[int, BlockProbe]]:
    bundle = Bundle.open(root)
    variant, backend = open_backend(bundle, "onnxruntime", variant="cpu-fp32", provider="cpu", threads=1)
    with backend:
        yield probes(bundle, variant, backend, draw_case(bundle, images, seed=3))[1]


def pass_costs(share: float) -> tuple[BlockCost, ...]:
    """A pass over S tokens takes 1 + share * S steps."""
    runs = tuple(RunCost(tokens=width, milliseconds=1 + share * width) for width in (2, 4, 8, 16))
    return tuple(BlockCost(block=block, prefill_milliseconds=0.1, step_milliseconds=1.0, runs=runs) for block in (1, 0))


def calibrate(root: Path, costs: tuple[BlockCost, ...] | None, **options: object) -> DecodeCalibration:
    bundle = Bundle.open(root)
    variant, backend = open_backend(bundle, "onnxruntime", variant="cpu-fp32", provider="cpu", threads=1)
    with backend:
        chosen = PlanOptions(**{"repetitions": 2, **options})  # type: ignore[arg-type]
        return calibrate_plan(bundle, variant, backend, draw_cases(bundle, 4, seed=1), chosen, costs=costs)


@pytest.fixture(scope="module")
def contextless_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first pass over a chunk is exact."""
    folder = tmp_path_factory.mktemp("contextless")
    config = class_config()
    model = contextless(randomise(build_flow(config.model)))
    save_checkpoint(folder / "checkpoint", config, model.state_dict())
    export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions(batch=1))
    return folder / "bundle"


@pytest.fixture(scope="module")
def random_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("random") / "bundle"
    export_checkpoint(tiny_checkpoint, root, ExportOptions(batch=1))
    return root


def test_each_block_of_larger_patches_in_one_wide_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flow blocks of 4, 8 and 16 tokens: the search covers each of them whole."""
    # Times of so small a model depend on the load of the machine, which may take a flow block out of the plan again.
    monkeypatch.setattr("starflow.calibration.plans.decode_plan.without_slower", lambda plan, *_: plan)
    config = patches_config()
    save_checkpoint(tmp_path / "checkpoint", config, contextless(randomise(build_flow(config.model))).state_dict())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=1))
    shallow = pass_costs(0.05)
    found = calibrate(tmp_path / "bundle", (shallow[0].model_copy(update={"block": 2}), *shallow), repetitions=7)
    assert {each.block: each.segments for each in found.plan.blocks} == {
        block: (Chunk(tokens=tokens, passes=1, guess=guess),)
        for block, tokens, guess in ((each.block, each.tokens, each.guess) for each in found.candidates)
    }
    assert [each.tokens for each in found.candidates] == [4, 8, 16]
    assert found.measured.passes == {2: 1, 1: 1, 0: 1}
    assert found.measured.error < 1e-5 and found.next_gain is None


@pytest.mark.parametrize("batch", [1, 2])
def test_chunk_errors_are_those_of_chunks_behind_the_right_tokens(
    tiny_bundle: Path, random_bundle: Path, batch: int
) -> None:
    """Sequential decoding up to the chunk, then the chunk as `iterate` runs it, is the independent truth."""
    with probed(tiny_bundle if batch == 2 else random_bundle) as found:
        for probe in found.values():
            enough = probe.chunks([8, 16], "noise", {8: 8, 16: 16})
            assert [(curve.start, curve.tokens) for curve in enough] == [(0, 8), (8, 8), (0, 16)]
            assert all((curve.errors[:, -1] < 1e-10).all() for curve in enough), "S passes are exact"
            for curve in probe.chunks([8, 16], "noise", {8: 2, 16: 2}):
                before = [Steps(tokens=curve.start)] if curve.start else []
                alone = [Chunk(tokens=curve.tokens, passes=2)]
                after = probe.count - curve.start - curve.tokens
                errors = [_chunk_error(probe, number, [*before, *alone], after) for number in range(len(probe.inputs))]
                np.testing.assert_allclose(curve.errors[:, 1], np.concatenate(errors), rtol=1e-3, atol=1e-12)


def _chunk_error(probe: BlockProbe, number: int, segments: list[Steps | Chunk], after: int) -> np.ndarray:
    probe.runner.prefill(probe.inputs[number])
    for segment in segments:
        if isinstance(segment, Steps):
            probe.runner.advance(segment.tokens)
        else:
            probe.runner.iterate(segment)
    found = probe.runner.read()[:, probe.block.first_token : probe.count + probe.block.first_token - after]
    right = probe.tokens[number * probe.batch : (number + 1) * probe.batch, : found.shape[1]]
    error: np.ndarray = np.square(found - right, dtype=np.float64).sum(axis=(1, 2)) / probe.energy
    return error


def test_a_windows_envelope_is_never_ahead_of_any_image(random_bundle: Path) -> None:
    differ = False
    with probed(random_bundle) as found:
        for probe in found.values():
            trial = probe.window(Window(tokens=16, width=6, tolerance=3e-2))
            steady = probe.window(envelope(trial))
            differ = differ or len(set(trial.advances)) > 1
            for advances in trial.advances:
                padded = np.pad(np.cumsum(advances), (0, int(steady.passes) - len(advances)), mode="edge")
                assert (np.cumsum(steady.advances[0]) <= padded).all()
            assert steady.error < 1e-2
    assert differ, "or the envelope is nothing but the trial"


def test_envelope_of_known_advances() -> None:
    window = Window(tokens=6, width=4, tolerance=0.1)
    trial = WindowTrial(window, ((1, 3, 2), (2, 1, 1, 2)), 0.0)
    assert envelope(trial).advances == (1, 2, 1, 2)  # edges 1 4 6 6 and 2 3 4 6


def test_only_passes_that_could_pay_are_looked_at() -> None:
    assert paying_passes(pass_costs(0.0)[0]) == {2: 2, 4: 4, 8: 8, 16: 16}
    assert paying_passes(pass_costs(0.5)[0]) == {2: 1, 4: 1, 8: 1, 16: 1}
    assert paying_passes(pass_costs(1.0)[0]) == {}


def test_without_context_two_passes_do_a_block(contextless_bundle: Path) -> None:
    result = calibrate(contextless_bundle, None, repetitions=15)
    assert result.spec is not None, result.reason
    assert result.measured.error < 1e-5
    assert sum(result.measured.passes.values()) <= 6
    assert all(block_curve(found.curves, 16)[0] < 1e-6 for found in result.candidates)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_plan_keeps_its_budget_on_other_samples(random_bundle: Path, fixed: bool) -> None:
    """Random weights couple tokens closely; where passes are nearly free, plans come close to the budget and not over."""
    loose, tight = (calibrate(random_bundle, pass_costs(0.01), budget=b, fixed=fixed) for b in (1e-1, 1e-3))
    assert loose.measured.error <= 1e-1 and tight.measured.error <= 1e-3
    for result in (loose, tight):
        for plan in result.plan.blocks:
            for segment in plan.segments:
                assert not fixed or not isinstance(segment, Chunk | Window) or segment.tolerance is None


def test_where_jacobi_does_not_pay_nothing_is_planned(random_bundle: Path) -> None:
    result = calibrate(random_bundle, pass_costs(1.0))
    assert (result.spec, result.plan.blocks) == (None, ())
    assert "no plan" in str(result.reason)
    assert result.distribution is None and not any("distribution" in fact for fact in decode_report(result).facts)
    assert sum(result.measured.passes.values()) == 32 and result.measured.error < 1e-6


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_kept_was_measured_to_be_faster(tiny_bundle: Path, random_bundle: Path, batch: int) -> None:
    result = calibrate(tiny_bundle if batch == 2 else random_bundle, None)
    if result.spec is not None:
        assert result.planned.milliseconds < result.sequential.milliseconds
        assert result.measured.error <= 1e-3
    else:
        assert result.reason


def arguments(root: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    configure(parser)
    usual = ("--plan", "--seed", "1", "--images", "4", "--repetitions", "2", "--threads", "1")
    return parser.parse_args([str(root), *usual, *more])


def test_the_command_stores_a_plan_that_auto_takes(
    contextless_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, file = tmp_path / "plot.png", tmp_path / "plan.json"
    for _ in range(2):  # the second one takes the place of the first
        more = ("--variant", "cpu-fp32", "--json", "--repetitions", "15", "--plot", str(plot), "--plan-file", str(file))
        assert run(arguments(contextless_bundle, *more)) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = printed["distribution"]
    assert found["samples"] == 128 and 0 <= found["frechet"] < 1e-6 * found["frechet_floor"]
    assert found["diversity"] == pytest.approx(1, abs=1e-5)
    assert printed["stored"] and printed["passes"] <= 6 < printed["sequential_passes"] == 32
    assert plot.read_bytes().startswith(b"\x89PNG")
    bundle = Bundle.open(contextless_bundle)
    assert [(plan.backend, plan.variant) for plan in bundle.manifest.plans] == [("onnxruntime cpu", "cpu-fp32")]
    with Sampler.open(contextless_bundle, threads=1) as automatic:
        assert automatic.plan == bundle.manifest.plans[0].plan
    with Sampler.open(contextless_bundle, plan=file, threads=1) as by_file:
        assert by_file.plan == bundle.manifest.plans[0].plan
    assert main(["inspect", str(contextless_bundle)]) == 0


def test_the_table_names_every_block(contextless_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(contextless_bundle, "--variant", "cpu-fp32", "--widths", "4,16", "--repetitions", "15")) == 0
    printed = capsys.readouterr().out
    assert "chunk 16 in 1" in printed and "times fewer" in printed and "stored" in printed
    assert "% of the time; no larger budget saves 10%" in printed
    assert re.search(
        r"as a distribution: Fréchet distance \S+ \([0-9.e+]+ between .*\), diversity 1.000; 128 samples", printed
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--widths", "4,x"), "with commas"),
        (("--widths", "4,\u0663"), "with commas"),
        (("--widths", "1,4"), "at least 2"),
        (("--budget", "0"), "above 0"),
        (("--plot", "{bundle}/manifest.json/x.png"), "not a folder you can write to"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(contextless_bundle: Path, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run(arguments(contextless_bundle, *(text.format(bundle=contextless_bundle) for text in more)))
    assert "\n" not in str(caught.value)


def test_feature_models_need_conditions_like_those_to_come(tmp_path: Path) -> None:
    from tests.models import features_config, write_checkpoint

    write_checkpoint(tmp_path / "checkpoint", features_config())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=2))
    with pytest.raises(UsageError, match="--condition"):
        run(arguments(tmp_path / "bundle"))
    np.save(tmp_path / "given.npy", np.random.default_rng(0).standard_normal((3, 3, 6), np.float32))
    np.save(tmp_path / "null.npy", np.zeros((3, 6), np.float32))
    given = ("--condition", str(tmp_path / "given.npy"), "--null-condition", str(tmp_path / "null.npy"))
    assert run(arguments(tmp_path / "bundle", *given, "--widths", "8")) == 0


@pytest.mark.parametrize(("weight", "run_by"), [("1.5", [1, 0]), ("4", None)], ids=["trained for", "too large"])
def test_students_are_timed_beside_the_plan_but_not_stored(
    students_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], weight: str, run_by: list[int] | None
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(students_bundle, root)
    assert run(arguments(root, "--guidance", weight, "--widths", "8", "--json")) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["students"]
    assert (found and found["blocks"]) == run_by
    assert found is None or min(found["milliseconds"], found["plan_milliseconds"]) > 0
    assert not any(plan.plan.students for plan in Bundle.open(root).autoregressive.plans)
    assert run(arguments(root, "--guidance", weight, "--widths", "8")) == 0
    assert ("flow blocks 1, 0 by students" in capsys.readouterr().out.replace("\n", " ")) == (run_by is not None)


def test_every_form_of_the_report(random_bundle: Path, tmp_path: Path) -> None:
    result = calibrate(random_bundle, pass_costs(0.01))
    report = decode_report(result)
    assert json.loads(json.dumps(report.values, allow_nan=False))["blocks"][0]["error_by_pass"]["16"]
    report.write_plot(tmp_path / "plot.svg")
    assert "flow block 1" in (tmp_path / "plot.svg").read_text()


def test_the_page_tells_plan_costs_times_and_budget(contextless_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    more = ("--variant", "cpu-fp32", "--repetitions", "15", "--budget", "2e-3", "--report", str(page), "--json")
    assert run(arguments(contextless_bundle, *more)) == 0
    text = page.read_text()
    (stored,) = Bundle.open(contextless_bundle).autoregressive.plans
    assert "chunk 16 in 1" in text and "budget 0.002" in text and "<svg" in text
    for cost in stored.costs:
        assert f"{cost.step_milliseconds:.2f} ms" in text and f"{cost.prefill_milliseconds:.2f} ms" in text
    assert 'src="http' not in text and 'href="http' not in text
