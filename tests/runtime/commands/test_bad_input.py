"""Everything wrong a caller can hand to the runtime: one line that says what to do, and nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Bundle, Guidance, Jacobi, Sampler
from starflow.runtime.bundle.bundle import sha256
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BackendError, BundleError, StarflowError, UsageError
from tests.edited_manifest import edit_manifest
from tests.models import features_config, tarflow_config, unconditional_config, write_checkpoint

# Of a training whose data cannot be read.
RECIPE = """
model: {family: continuous-flow, network: mlp, dimensions: 2, channels: 8, layers: 1}
data: {kind: npz, path: data.npz}
objective: {kind: cfm}
training: {steps: 1, batch_size: 1}
"""


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def raises(kind: type[StarflowError], *words: str) -> Any:
    """One line that holds `words` in this order."""
    return pytest.raises(kind, match="(?s)^(?!.*\n).*" + ".*".join(words))


def test_labels_that_are_no_class(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        noise = sampler.noise(2)
        for wrong in ([3, 10], [-1, 0], ["seven", "1"], [0.5, 1.0], [[1, 2]]):
            with raises(UsageError, "0 to 9"):
                sampler.generate(noise, wrong)
        with raises(UsageError, "3 labels for 2 images"):
            sampler.generate(noise, [1, 2, 3])


def test_guidance_that_is_no_weight(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        for weight in (-0.5, float("nan"), float("inf")):
            with raises(UsageError, "guidance", ">= 0"):
                sampler.generate(sampler.noise(1), [1], guidance=weight)
        with raises(UsageError, "TARFlow"):
            sampler.generate(sampler.noise(1), [1], guidance=Guidance(1.0, annealed=True))


def test_guidance_on_an_unconditional_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", unconditional_config())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    with Sampler.open(tmp_path / "bundle", threads=1) as sampler:
        with raises(UsageError, "unconditional"):
            sampler.generate(sampler.noise(1), guidance=1.0)
        with raises(UsageError, "unconditional"):
            sampler.generate(sampler.noise(1), [3])


def test_guidance_on_a_bundle_without_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "bundle", ExportOptions(guidance=False))
    with Sampler.open(tmp_path / "bundle", threads=1) as sampler, raises(UsageError, "--no-guidance"):
        sampler.generate(sampler.noise(1), [1], guidance=1.0)


def test_conditions_of_the_wrong_shape(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", features_config(tokens=3, width=6))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    with Sampler.open(tmp_path / "bundle", threads=1) as sampler:
        noise, right = sampler.noise(2), np.zeros((2, 3, 6), np.float32)
        for wrong in (np.zeros((2, 3, 7)), np.zeros((2, 4, 6)), np.zeros(6), np.array(["a"])):
            with raises(UsageError, r"\[N, 3, 6\]"):
                sampler.generate(noise, wrong)
        with raises(UsageError, "needs a condition"):
            sampler.generate(noise)
        with raises(UsageError, "null condition"):
            sampler.generate(noise, right, guidance=1.0)
        with raises(UsageError, "NaN"):
            sampler.generate(noise, right * np.nan)


def test_noise_that_does_not_fit(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        noise = sampler.noise(2)
        noise[1, 0, 3, 3] = np.nan
        with raises(UsageError, "NaN"):
            sampler.generate(noise, [1, 2])
        with raises(UsageError, r"\[1, 1, 8, 10\]", r"\[N, 1, 8, 8\]"):
            sampler.generate(np.zeros((1, 1, 8, 10)), [1])
        with raises(UsageError, "at least one image"):
            sampler.sample([1], count=0)


def test_a_value_that_is_not_finite_is_named_and_does_not_stay(tiny_bundle: Path) -> None:
    for variant in ("cpu-fp32", "portable-fp32"):
        with Sampler.open(tiny_bundle, variant=variant, threads=1) as sampler:
            noise = sampler.noise(2)
            before = sampler.generate(noise, [1, 2], guidance=1.0)
            with raises(BackendError, "flow block 1", "token"):
                sampler.generate(np.full_like(noise, 3e38), [1, 2], guidance=1.0)
            assert np.array_equal(before, sampler.generate(noise, [1, 2], guidance=1.0))


def test_attention_temperature_and_chunks_the_bundle_lacks(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler, raises(UsageError, "--attention-temperature"):
        sampler.generate(sampler.noise(1), [1], attention_temperature=0.5)
    export_checkpoint(tiny_checkpoint, tmp_path / "short", ExportOptions(max_chunk=4))
    with raises(UsageError, "1 to 4"):
        Sampler.open(tmp_path / "short", plan=Jacobi(8))


def test_unknown_variant_and_backend(tiny_bundle: Path) -> None:
    with raises(BundleError, "cpu-int8", "cpu-fp32"):
        Sampler.open(tiny_bundle, variant="cpu-int8")
    with raises(UsageError, "backend"):
        Sampler.open(tiny_bundle, backend="cuda")  # type: ignore[arg-type]


def test_paths_that_are_no_bundle(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with raises(UsageError, "is a file"):
        Bundle.open(file)
    with raises(UsageError, "does not exist"):
        Bundle.open(tmp_path / "nothing")
    with raises(BundleError, "no manifest.json"):
        Bundle.open(tmp_path)


def test_damaged_manifests(copy: Path) -> None:
    original = (copy / "manifest.json").read_text()
    for change, words in (
        (lambda m: m.update(schema_version=4), ("schema 4", "newer")),
        (lambda m: m.update(colour="red"), ("unknown field colour",)),
        (lambda m: m.pop("batch"), ("batch",)),
        (lambda m: m.update(batch=0), ("batch",)),
        (lambda m: m["variants"][0]["weights"].update(path="../../secret"), ("path",)),
    ):
        (copy / "manifest.json").write_text(original)
        edit_manifest(copy, change)
        with raises(BundleError, *words):
            Bundle.open(copy)
    (copy / "manifest.json").write_text(original[: len(original) // 2])
    with raises(BundleError, "not JSON"):
        Bundle.open(copy)


def test_truncated_missing_and_changed_files(copy: Path) -> None:
    weights = copy / "graphs" / "weights" / "fp32.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with raises(BundleError, "fp32.safetensors", "manifest says"):
        Bundle.open(copy)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bundle = Bundle.open(copy)
    with raises(BundleError, "fp32.safetensors", "not what was exported"):
        bundle.verify_hashes()
    weights.write_bytes(content)
    bundle.verify_hashes()
    graph = next((copy / "graphs").glob("*.cpu-fp32.onnx"))
    graph.unlink()
    with raises(BundleError, graph.name, "missing"):
        Bundle.open(copy)


def test_a_graph_that_is_none(copy: Path) -> None:
    graph = copy / "graphs" / "block1.cpu-fp32.onnx"
    graph.write_bytes(b"\0" * graph.stat().st_size)
    with Sampler.open(copy, threads=1) as sampler, raises(BundleError, "block1.cpu-fp32.onnx", "export"):
        sampler.generate(sampler.noise(1), [1])


def test_graphs_of_two_blocks_exchanged(copy: Path) -> None:
    first, second = (copy / "graphs" / f"block{index}.cpu-fp32.onnx" for index in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    edit_manifest(
        copy,
        lambda m: [
            g["file"].update(bytes=path.stat().st_size, sha256=sha256(path))
            for v in m["variants"]
            for g in v["graphs"]
            for path in [copy / g["file"]["path"]]
        ],
    )
    with Sampler.open(copy, threads=1) as sampler, raises(BundleError, "manifest says"):
        sampler.generate(sampler.noise(1), [1])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--labels", "12"], 2, "0 to 9"),
        (["--labels", "9-3"], 2, "runs backwards; give 3-9"),
        (["--labels", ","], 2, "at least one label"),
        (["--guidance", "-1"], 2, "guidance"),
        (["--count", "0"], 2, "--count 0: give a number of at least 1"),
        (
            ["--labels", "3,4,5", "--count", "2"],
            2,
            "--count 2: give a number of at least 3; there are conditions for 3",
        ),
        (["--lables", "3"], 2, "unknown option --lables; did you mean --labels?"),
        (["--zzz"], 2, "unknown option --zzz; see starflow sample --help"),
        (["surplus"], 2, "unexpected: surplus; see starflow sample --help"),
        (["--count", "many"], 2, "--count: found 'many', expected a whole number; see"),
        (["--guidance", "strong"], 2, "--guidance: found 'strong', expected a number; see"),
        (["--seed"], 2, "--seed: needs a value; see"),
        (["--seed", "--"], 2, "--seed: needs a value; see"),
        (["--labels", "3", "--captions", "a"], 2, "exclude each other; leave one out; see"),
        (["--threads", "-1"], 2, "threads"),
        (["--out", "picture.gif"], 2, ".png"),
        (["--condition", "absent.npy"], 2, "does not exist"),
        (["--variant", "gpu"], 1, "variant"),
    ],
)
def test_command_line_says_it_in_one_line(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(tiny_bundle), *arguments]) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "Traceback" not in error
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    "command",
    [
        "sample BUNDLE --threads 1 --out folder/OUTPUT.png",
        "sample BUNDLE --threads 1 --latents folder/OUTPUT.npy",
        "score BUNDLE image.png --labels 1 --threads 1 --latents folder/OUTPUT.npy",
        "bench BUNDLE --threads 1 --repetitions 1 --variant cpu-fp32 --plot folder/OUTPUT.svg",
        "calibrate BUNDLE --plan --threads 1 --repetitions 1 --variant cpu-fp32 --images 2 --plot folder/OUTPUT.png",
        "calibrate BUNDLE --plan --threads 1 --repetitions 1 --variant cpu-fp32 --images 2 --plan-file folder/OUTPUT.json",
        "verify BUNDLE --checkpoint CHECKPOINT --variant cpu-fp32 --report folder/OUTPUT.html",
    ],
)
def test_an_output_that_the_system_refuses_is_one_line(
    copy: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """The name is too long for a file beside it, which only writing it tells."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Image.new("L", (8, 8)).save("image.png")
    places = {"BUNDLE": str(copy), "CHECKPOINT": str(tiny_checkpoint), "OUTPUT": "x" * 245}
    for place, path in places.items():
        command = command.replace(place, path)
    assert main(command.split()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be written (File name too long)" in error and "x" * 245 in error
    assert not list(Path("folder").iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "sample BUNDLE --labels 1 --out OUTPUT.png",
        "sample BUNDLE --labels 1 --out OUTPUT",
        "sample BUNDLE --labels 1 --latents OUTPUT.npy",
        "score BUNDLE image.png --labels 1 --latents OUTPUT.npy",
        "bench BUNDLE --plot OUTPUT.svg",
        "calibrate BUNDLE --plan --plot OUTPUT.png",
        "calibrate BUNDLE --plan --plan-file OUTPUT.json",
        "calibrate BUNDLE --plan --report OUTPUT.html",
        "calibrate BUNDLE --weights int8 --report OUTPUT.html",
        "verify BUNDLE --report OUTPUT.html",
        "export CHECKPOINT -o OUTPUT",
        "import CHECKPOINT/model.safetensors --config CHECKPOINT/config.json -o OUTPUT",
        "train recipe.yaml --out OUTPUT",
    ],
)
@pytest.mark.parametrize("output", ["/proc/output", "folder/" + "x" * 250])
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    command: str,
    output: str,
    copy: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The work would fail, with another message: graphs, weights and data are damaged."""
    if len(output) > 200 and command.endswith(
        ("train recipe.yaml --out OUTPUT", "sample BUNDLE --labels 1 --out OUTPUT")
    ):
        pytest.skip("these make a folder under its own name, which is not too long")
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Image.new("L", (8, 8)).save("image.png")
    Path("data.npz").write_bytes(b"no archive")
    Path("recipe.yaml").write_text(RECIPE)
    shutil.copytree(tiny_checkpoint, "checkpoint")
    for path in (*copy.rglob("*.onnx"), Path("checkpoint/model.safetensors")):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"\xff" * (len(content) - len(content) // 2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place, name in {"BUNDLE": str(copy), "CHECKPOINT": "checkpoint", "OUTPUT": output}.items():
        command = command.replace(place, name)
    assert main(command.split()) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and output in error
    assert "File name too long" in error or "/proc" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("option", ["--plot a/plan.png", "--report a/plan.html"])
def test_a_plan_is_not_stored_if_a_file_beside_it_cannot_be_written(
    option: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of the second file becomes the first file, which no check sees before."""
    monkeypatch.chdir(tmp_path)
    manifest = (copy / "manifest.json").read_bytes()
    command = f"calibrate {copy} --plan --budget 0.5 --threads 1 --repetitions 1 --variant cpu-fp32 --images 2"
    assert main([*command.split(), "--plan-file", "a", *option.split()]) == 2
    assert "a is not a folder you can write to" in capsys.readouterr().err
    assert (copy / "manifest.json").read_bytes() == manifest


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_is_full_is_one_line(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "starflow.runtime", "inspect", str(tiny_bundle), "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "starflow inspect: error: output: No space left on device\n")


def test_pixels_of_eight_bits_are_refused_with_the_mend(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        pixels = np.full((1, 1, 8, 8), 255.0)
        with raises(UsageError, "pixels range from 255 to 255, expected -1 to 1", "give pixels / 127.5 - 1"):
            sampler.encode_images(pixels)
        assert sampler.encode_images(pixels / 127.5 - 1).max() == 1


@pytest.mark.parametrize("call", ["generate", "invert", "sample", "encode_captions"])
def test_a_closed_sampler_says_so(tiny_bundle: Path, call: str) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        noise = sampler.noise(2)
        x = sampler.generate(noise, [1, 2])
    arguments: dict[str, Any] = {"encode_captions": ["a"], "sample": [1, 2], "generate": noise}
    with raises(UsageError, "this sampler is closed; open the bundle again"):
        getattr(sampler, call)(arguments.get(call, x))


def test_unwritable_output_is_said_before_sampling(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["sample", str(tiny_bundle), "--out", str(tmp_path / "file" / "samples.png")]) == 2
    error = capsys.readouterr().err
    assert "file" in error and error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_wrong_use_of_export(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    for arguments, words in (
        (["--batch", "0"], "--batch"),
        (["--shape", "7x8"], "multiples of the patch size"),
        (["--shape", "wide"], "height and width"),
        (["--max-chunk", "99"], "--max-chunk"),
    ):
        assert main(["export", str(tiny_checkpoint), "-o", str(out), *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_export_does_not_replace_unasked(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "keep").write_text("mine")
    assert main(["export", str(tiny_checkpoint), "-o", str(tmp_path / "bundle")]) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "bundle" / "keep").read_text() == "mine"


def test_tarflow_has_one_shape(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", tarflow_config())
    with raises(UsageError, "8x8 only"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(shape=(16, 16)))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_export_stopped_in_the_middle_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, number: int) -> None:
    """A real process, stopped by a real signal while it writes weights."""
    script = f"""
import os, sys
from starflow.export.autoregressive import family
from starflow.runtime.command_line import main
from tests.edited_manifest import edit_manifest
build = family.StepGraph.build
def stop_at_the_second(graph):
    if graph.block.index == 0:
        os.kill(os.getpid(), {int(number)})
    return build(graph)
family.StepGraph.build = stop_at_the_second
sys.exit(main(["export", {str(tiny_checkpoint)!r}, "-o", {str(tmp_path / "bundle")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
