"""Continuous flows through `Sampler` and the command line: plans, splits, and requests that cannot be met."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Guidance, Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError, IntegrationError, StarflowError, UsageError
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps, default_plan, integration_plan
from tests.edited_manifest import edit_manifest
from tests.models import points_config, write_velocity


@pytest.fixture(scope="module")
def sampler(continuous_bundle: Path) -> Iterator[Sampler]:
    with Sampler.open(continuous_bundle, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("plan", [integration_plan("midpoint", 3), AdaptiveSteps(tolerance=1e-2)], ids=str)
def test_an_image_depends_on_seed_and_condition_alone(sampler: Sampler, plan: Any) -> None:
    """Batch 2: five images are three runs, the last one padded. Adaptive steps look at both images of a run."""
    sampler.plan = plan
    noise, labels = sampler.noise(5, seed=3), [0, 1, 2, 0, 1]
    seen: list[tuple[int, int]] = []
    together = sampler.generate(noise, labels, guidance=1.0, progress=lambda done, total: seen.append((done, total)))
    assert together.shape == (5, 1, 8, 8) and seen[-1] == (3000, 3000)
    for index in range(5):
        alone = sampler.generate(noise[index : index + 1], [labels[index]], guidance=1.0)
        allowed = 0 if isinstance(plan, FixedSteps) or index == 4 else 1e-2
        np.testing.assert_allclose(together[index], alone[0], atol=allowed)
    images = sampler.sample(labels, guidance=1.0, seed=3)
    assert images.shape == (5, 8, 8, 1) and np.array_equal(images, sampler.to_images(together))


def test_conditions_and_guidance_reach_the_network(sampler: Sampler) -> None:
    sampler.plan = integration_plan("heun", 4)
    noise = sampler.noise(2)
    plain = sampler.generate(noise, [1, 1])
    assert np.abs(plain - sampler.generate(noise, [1, 2])).reshape(2, -1).max(1).tolist()[0] == 0
    assert np.abs(plain - sampler.generate(noise, [1, 2]))[1].max() > 1e-3
    assert np.abs(plain - sampler.generate(noise, [1, 1], guidance=2.0)).max() > 1e-3
    passes: list[tuple[int, int]] = []
    sampler.generate(noise, [1, 1], on_passes=lambda block, count: passes.append((block, count)))
    assert passes == [(0, 8)]
    np.testing.assert_array_equal(sampler.generate(noise, [1, 1]), plain)  # earlier calls leave nothing behind


def test_an_interval_guides_the_steps_that_start_in_it(sampler: Sampler) -> None:
    sampler.plan = integration_plan("euler", 4)
    noise, labels = sampler.noise(3, seed=4), [0, 1, 2]
    images = [Guidance(2.0, interval=(0.25, 0.75)), Guidance(1.0), Guidance(3.0, interval=(0.5, 1.0))]
    together = sampler.generate(noise, labels, guidance=images)
    for index, guidance in enumerate(images):
        alone = sampler.generate(noise[index : index + 1], [labels[index]], guidance=guidance)
        np.testing.assert_array_equal(together[index], alone[0])
    whole = sampler.generate(noise, labels, guidance=Guidance(2.0, interval=(0.0, 1.0)))
    np.testing.assert_array_equal(whole, sampler.generate(noise, labels, guidance=2.0))
    # The first two images again, by hand: v is linear in the weight, so two weights tell it for all.
    sampler.generate(noise[:2], labels[:2])  # leaves the labels with the runner
    runner, expected = sampler.backend.continuous_runner(), noise[:2].copy()
    for step, weights in enumerate([[0, 1], [2, 1], [2, 1], [0, 1]]):
        runner.guide(np.zeros(2, np.float32))
        plain = runner.velocity(expected, step / 4)
        runner.guide(np.ones(2, np.float32))
        slope = runner.velocity(expected, step / 4) - plain
        expected = expected + (plain + np.reshape(weights, (2, 1, 1, 1)) * slope) / 4
    np.testing.assert_allclose(together[:2], expected, atol=1e-4)


def test_an_interval_on_the_command_line(continuous_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "x.npy"
    words = ["sample", str(continuous_bundle), "--labels", "0,1", "--solver", "heun", "--steps", "4", "--threads", "1"]
    given = ["--guidance", "2", "--guidance-interval", "0.25", "0.75"]
    out = ["--latents", str(path), "--out", str(tmp_path / "x.png")]
    assert main([*words, *given, *out]) == 0
    with Sampler.open(continuous_bundle, plan=integration_plan("heun", 4), threads=1) as sampler:
        expected = sampler.generate(sampler.noise(2), [0, 1], guidance=Guidance(2.0, interval=(0.25, 0.75)))
    assert np.array_equal(np.load(path), expected)
    for wrong, says in (
        (["--guidance-interval", "0.2", "0.8"], "there is no guidance; give a weight with --guidance"),
        (["--guidance", "1", "--guidance-interval", "0.8", "0.2"], "guidance interval 0.8 0.2: give two times"),
        (["--guidance", "1", "--guidance-interval", "nan", "1"], "expected a finite number"),
    ):
        assert main([*words, *wrong, *out]) == 2
        told = capsys.readouterr().err
        assert says in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.generate(s.noise(1), [0], attention_temperature=2.0), "is for autoregressive flows"),
        (
            lambda s: s.generate(s.noise(1), [0], guidance=Guidance(1.0, annealed=True)),
            "takes a weight and an interval",
        ),
        (lambda s: s.generate(s.noise(1), [7]), "label 7 is not a class"),
        (
            lambda s: s.generate(np.zeros((1, 8, 8))),
            "noise has shape [1, 8, 8]; this bundle takes float32 [N, 1, 8, 8]",
        ),
        (lambda s: setattr(s, "plan", Jacobi(4)), "is for autoregressive flows"),
        (lambda s: setattr(s, "plan", "sequential"), "is for autoregressive flows"),
        (lambda s: setattr(s, "plan", "nowhere.json"), "cannot be read"),
        (lambda s: s.bundle.autoregressive, "is a continuous flow"),
        (lambda s: s.generate(s.noise(1), [0], guidance=-1.0), "not a weight"),
    ],
)
def test_what_does_not_apply_is_one_line(sampler: Sampler, call: Any, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        call(sampler)
    assert "\n" not in str(caught.value)


def test_an_autoregressive_bundle_takes_no_solver(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="solvers and steps are for continuous flows"):
        Sampler.open(tiny_bundle, plan=integration_plan("heun", 3), threads=1)
    with pytest.raises(UsageError, match="is an autoregressive flow"):
        _ = Bundle.open(tiny_bundle).continuous


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"solver": "rk5", "times": [0, 1]}, "solver"),
        ({"solver": "heun", "times": [0, 0.5, 0.5, 1]}, "must increase: time 2 is 0.5, after 0.5"),
        ({"solver": "heun", "times": [0, 0.5]}, "they must run from 0 (noise) to 1 (data)"),
        ({"solver": "dopri5", "tolerance": 0}, "found 0, expected more than 0"),
        ({"solver": "heun", "times": []}, "give at least 2"),
        ({"solver": "dopri5", "times": [0, 1]}, "tolerance"),
        ([1], "plan"),
    ],
)
def test_bad_plan_files(continuous_bundle: Path, tmp_path: Path, content: object, says: str, capsys: Any) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    assert main(["sample", str(continuous_bundle), "--plan", str(path)]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1 and "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--solver", "rk5"], "'rk5' is not known; choose euler, midpoint, heun, rk4 or dopri5"),
        (["--steps", "0"], "0 steps"),
        (["--solver", "dopri5", "--steps", "4"], "chooses its own steps"),
        (["--solver", "heun", "--tolerance", "1e-3"], "takes steps"),
        (["--tolerance", "-1"], "between 0 and 1"),
        (["--steps", "4", "--plan", "plan.json"], "leave out --solver"),
        (["--plan", "sequential"], "autoregressive"),
    ],
)
def test_bad_arguments(continuous_bundle: Path, arguments: list[str], says: str, capsys: Any) -> None:
    assert main(["sample", str(continuous_bundle), *arguments]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


def test_sample_and_inspect_commands(continuous_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    out, latents = tmp_path / "x.png", tmp_path / "x.npy"
    command = ["sample", str(continuous_bundle), "--labels", "0-2", "--guidance", "1", "--seed", "4", "--threads", "1"]
    assert (
        main([*command, "--solver", "rk4", "--steps", "3", "--out", str(out), "--latents", str(latents), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["decoding"] == "rk4, 3 steps" and told["images"] == 3 and out.is_file()
    plan = tmp_path / "plan.json"
    plan.write_text(integration_plan("rk4", 3).model_dump_json())
    with Sampler.open(continuous_bundle, threads=1, plan=plan) as sampler:
        expected = sampler.generate(sampler.noise(3, 4), [0, 1, 2], guidance=1.0)
    np.testing.assert_array_equal(np.load(latents), expected)
    assert main(["inspect", str(continuous_bundle), "--hashes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"].startswith("continuous-flow, transformer") and told["guidance"] == "linear rule"
    assert [variant["rows"] for variant in told["variants"]] == [4] * 4
    assert main(["inspect", str(continuous_bundle)]) == 0
    assert "a pass reads" in capsys.readouterr().out


def test_bench_times_passes(continuous_bundle: Path, capsys: Any) -> None:
    command = [
        "bench",
        str(continuous_bundle),
        "--repetitions",
        "2",
        "--threads",
        "1",
        "--solver",
        "heun",
        "--steps",
        "3",
    ]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [timing["variant"] for timing in told["timings"]] == ["cpu-fp32", "cpu-fp16"]
    for timing in told["timings"]:
        assert timing["passes"] == 6 and timing["plan"] == "heun, 3 steps"
        assert timing["pass_milliseconds"] == pytest.approx(timing["batch_milliseconds"] / 6)
        assert timing["images_per_second"] == pytest.approx(2000 / timing["batch_milliseconds"])
        assert 0 < timing["floor_milliseconds"] < timing["pass_milliseconds"]
    assert main(command) == 0
    assert "passes" in capsys.readouterr().out
    assert main([*command, "--explain"]) == 2
    assert "--explain: is for autoregressive flows" in capsys.readouterr().err


def test_points_have_no_pixels(tmp_path: Path, capsys: Any) -> None:
    write_velocity(tmp_path / "checkpoint", points_config())
    assert main(["export", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "bundle"), "--batch", "4"]) == 0
    assert main(["sample", str(tmp_path / "bundle"), "--count", "6", "--latents", str(tmp_path / "x.npy")]) == 0
    assert np.load(tmp_path / "x.npy").shape == (6, 2)
    assert "x.npy: 6 points in" in capsys.readouterr().out
    assert main(["sample", str(tmp_path / "bundle"), "--count", "6"]) == 2
    assert "makes points, not images; name a .npy file with --latents" in capsys.readouterr().err
    with (
        Sampler.open(tmp_path / "bundle", threads=1) as sampler,
        pytest.raises(UsageError, match="makes points, not images"),
    ):
        sampler.sample(count=2)
    with (
        Sampler.open(tmp_path / "bundle", threads=1) as sampler,
        pytest.raises(UsageError, match="unconditional model"),
    ):
        sampler.generate(sampler.noise(1), guidance=1.0)


def test_divergence_on_the_command_line_writes_nothing(continuous_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x.png"
    command = ["sample", str(continuous_bundle), "--labels", "1", "--out", str(out), "--guidance", "1e12"]
    assert main([*command, "--solver", "euler", "--steps", "3"]) == 1
    told = capsys.readouterr().err
    assert re.search(r"diverged: x .* in step 1 of 3, at time 0\.3333; take more steps", told)
    assert told.count("\n") == 1 and not list(tmp_path.iterdir())


def test_divergence_is_told_with_step_and_time(continuous_bundle: Path, tmp_path: Path) -> None:
    """With an output projection 1e9 times as large the integration diverges."""
    shutil.copytree(continuous_bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / "graphs" / "weights" / "fp32.safetensors"
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8:begin])["proj_out.weight"]["data_offsets"]
    content[begin + first : begin + last] = (load_file(path)["proj_out.weight"] * 1e9).astype(np.float32).tobytes()
    path.write_bytes(content)
    with Sampler.open(
        tmp_path / "bundle", variant="cpu-fp32", plan=integration_plan("euler", 10), threads=1
    ) as sampler:
        with pytest.raises(IntegrationError, match=r"diverged: x reached .* in step 1 of 10, at time 0\.1;"):
            sampler.generate(sampler.noise(2), [0, 1])
        sampler.plan = AdaptiveSteps(tolerance=1e-3)
        with pytest.raises(IntegrationError):
            sampler.generate(sampler.noise(2), [0, 1])


def test_a_damaged_manifest_is_refused(continuous_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(continuous_bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    edit_manifest(tmp_path / "bundle", lambda manifest: None)
    good = json.loads(path.read_text())

    def refused(change: dict[str, Any], says: str) -> None:
        path.write_text(json.dumps(good | change))
        with pytest.raises(BundleError, match=says) as caught:
            Bundle.open(tmp_path / "bundle")
        assert "\n" not in str(caught.value)

    refused({"batch": 3}, r"its graph takes x float32 \[2, 1, 8, 8\], expected float32 \[3, 1, 8, 8\]")
    refused({"max_passes": 10}, r"its graph takes passes float32 \[256, 4\], expected float32 \[10, 4\]")
    refused({"guided": False}, "its graph takes label|its graph takes guidance, which does not fit")
    refused({"solver": 1}, "unknown field solver")
    refused({"model": good["model"] | {"family": "discontinuous"}}, "model.family")
    graphs = [good["variants"][0] | {"graphs": good["variants"][0]["graphs"] * 2}]
    refused({"variants": graphs}, "must have one graph")
    spec = {"backend": "onnxruntime cpu", "variant": "gone", "budget": 0.1, "error": 0.1, "images": 1, "guidance": 0}
    spec |= {"passes": 2, "milliseconds": 1, "default_error": 0, "default_milliseconds": 1}
    refused({"plans": [spec | {"plan": {"solver": "heun", "times": [0, 1]}}]}, "plans: found variant gone")
    refused({"plans": [spec | {"plan": {"solver": "heun", "times": [1, 0]}}]}, "must increase")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ExportOptions(max_chunk=4), "--max-chunk"),
        (ExportOptions(attention_temperature=True), "--attention-temperature"),
        (ExportOptions(condition_tokens=4), "--condition-tokens"),
        (ExportOptions(shape=(9, 8)), "multiples of the patch size"),
        (ExportOptions(batch=0), "--batch 0"),
    ],
)
def test_exports_that_cannot_be(continuous_checkpoint: Path, tmp_path: Path, options: ExportOptions, says: str) -> None:
    with pytest.raises(StarflowError, match=says):
        export_checkpoint(continuous_checkpoint, tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())


def test_fp16_is_refused_where_activations_overflow(continuous_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(continuous_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    tensors["layers.0.mlp.main.0.weight"] *= 3e4
    save_file(tensors, path)
    with pytest.raises(StarflowError, match=r"activations of layers\.0 reach .*; float16 ends"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(precisions=("fp16",)))
    assert not (tmp_path / "bundle").exists()


def test_the_default_plan_is_stated(sampler: Sampler) -> None:
    sampler.plan = "auto"
    assert sampler.plan == default_plan() and sampler.decoding == "heun, 16 steps"
