"""Command lines and files that nobody would give in good faith: one line, at once, and nothing written."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from starflow.export.exporter import export_checkpoint
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError
from tests.edited_manifest import edit_manifest
from tests.models import class_config, write_checkpoint

LONG = "x" * 5000
Places = dict[str, Path]


@pytest.fixture
def places(
    tiny_bundle: Path, tiny_checkpoint: Path, captioned_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Places:
    """What command lines name; the working directory is a new folder."""
    monkeypatch.chdir(tmp_path)
    return {"BUNDLE": tiny_bundle, "CHECKPOINT": tiny_checkpoint, "CAPTIONED": captioned_bundle}


def refused(arguments: list[str], places: Places, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that has to fail in one line, soon and without much memory; return the line."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    there = sorted(Path().rglob("*"))
    status = main([str(places.get(argument, argument)) for argument in arguments])
    captured = capfd.readouterr()
    assert status in (1, 2) and captured.out == ""
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err and "internal error" not in captured.err
    assert len(captured.err) < 2500 and not set(captured.err) & set("\x1b\x9b\x07\r\x08\u202e")
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB
    assert sorted(Path().rglob("*")) == there, "something was written, or taken away"
    return captured.err


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["--labels=²"], "label '²' is not a class of this model"),
        (["--labels=٣"], "label '٣' is not a class of this model"),
        (["--labels=0-99999999999"], "found 100,000,000,000 labels, expected at most 1,000,000"),
        (["--labels=0-9999999999999999999999"], "is not a class of this model"),
        (["--labels=9999999999999999999"], "label '9999999999999999999' is not a class of this model"),
        (["--labels=\x1b[31mred"], r"label '\x1b[31mred' is not a class"),
        (["--count=1000000000"], "sampling 1,000,000,000 images at once takes"),
        (
            ["--count=100000000000000000000"],
            "--count: found '100000000000000000000', expected a whole number of at most 19",
        ),
        (["--columns=-5"], "--columns -5: give a number of at least 1"),
        (["--columns=0"], "--columns 0: give a number of at least 1"),
        (["--threads=10000"], "threads 10000: give a number from 1 to 1024"),
        (
            ["--threads=100000000000000000000"],
            "--threads: found '100000000000000000000', expected a whole number of at most 19",
        ),
        (["--guidance=nan"], "--guidance: found 'nan', expected a finite number"),
        (["--denoising-rate=inf"], "--denoising-rate: found 'inf', expected a finite number"),
        (["--seed=-1"], "seed -1 is not a whole number from 0 to 2^64 - 1"),
        ([f"--plan={LONG}"], "cannot be read (File name too long)"),
        (["--plan=/dev/zero"], "plan /dev/zero: cannot be read (is a device, expected a file)"),
        ([f"--variant={LONG}"], "has no variant"),
        (["--variant=\x1b[2J"], r"has no variant '\x1b[2J'"),
        (["--shape=²x²"], "--shape ²x²: give height and width"),
        (["--condition=/dev/zero"], "/dev/zero: is not a .npy array of numbers: is a device, expected a file"),
        (["--latents=/dev/null"], "/dev/null: is a device"),
        ([f"--out={LONG}.png"], "File name too long"),
        (["--captions", "a\udc80b"], "no captions; its condition is class-token"),
    ],
)
def test_options_of_sample(command: list[str], found: str, places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    assert found in refused(["sample", "BUNDLE", *command], places, capfd)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--budget=1e308"], "--budget 1e+308: give a relative error above 0, such as 0.005, and at most 1,000,000"),
        (["--budget=0"], "--budget 0: give a relative error above 0"),
        (["--budget=nan"], "--budget: found 'nan', expected a finite number"),
        (["--repetitions=0"], "--repetitions 0: give a number of at least 1"),
        (["--guidance=1e9"], "samples with guidance 1e+09 hold NaN or infinity, so nothing can be compared with them"),
        (["--images=1000000000"], "sampling 1,000,000,000 images at once takes"),
    ],
)
def test_options_of_calibrate(
    options: list[str], found: str, places: Places, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", "BUNDLE", "--plan", "--images=1", "--threads=1", *options]
    assert found in refused(command, places, capfd)


@pytest.mark.parametrize(
    "command",
    [
        "sample BUNDLE --labels 1 --latents BUNDLE/manifest.json --out x.png",
        "sample BUNDLE --labels 1 --out BUNDLE/graphs/x.png",
        "score BUNDLE image.png --labels 1 --latents BUNDLE/graphs/block0.cpu-fp32.onnx",
        "verify BUNDLE --report BUNDLE/manifest.sha256",
        "calibrate BUNDLE --plan --report BUNDLE/manifest.json",
        "calibrate BUNDLE --plan --plan-file link/manifest.json",
        "calibrate BUNDLE --weights int8 --report BUNDLE/manifest.json",
        "bench BUNDLE --plot BUNDLE/engines/plot.png",
    ],
)
def test_an_output_in_the_place_of_a_part_of_the_bundle(
    command: str, places: Places, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8)).save("image.png")
    Path("link").symlink_to(places["BUNDLE"])
    before = files_in(places["BUNDLE"])
    words = command.replace("BUNDLE/", f"{places['BUNDLE']}/").split()
    assert f"belongs to the bundle {places['BUNDLE']}; name another file" in refused(words, places, capfd)
    assert files_in(places["BUNDLE"]) == before


@pytest.mark.parametrize("steps", ["1000000000", "0"])
def test_steps_beyond_reason(
    steps: str, continuous_bundle: Path, places: Places, capfd: pytest.CaptureFixture[str]
) -> None:
    error = refused(["sample", str(continuous_bundle), f"--steps={steps}"], places, capfd)
    assert "steps from noise to data; give at least 1, and at most 100,000" in error


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


FILES = {  # command lines that read IT
    "plan": "sample BUNDLE --plan IT --out x.png",
    "condition": "sample CAPTIONED --condition IT --out x.png",
    "captions": "sample CAPTIONED --captions-file IT --out x.png",
    "bundle": "inspect IT",
    "image": "score BUNDLE IT --labels 1",
    "array": "score BUNDLE IT --labels 1",
    "recipe": "train IT --out run",
    "weights": "import IT --config CHECKPOINT/config.json -o checkpoint",
    "safetensors": "import IT --config CHECKPOINT/config.json -o checkpoint",
    "configuration": "import CHECKPOINT/model.safetensors --config IT -o checkpoint",
    "activations": "export CHECKPOINT -o bundle --precision fp16 --activations IT",
    "checkpoint": "export IT -o bundle",
    "reference": "verify BUNDLE --checkpoint IT",
}
SUFFIXES = {"array": ".npy", "condition": ".npy", "weights": ".pth", "safetensors": ".safetensors", "image": ".png"}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("make", [os.mkfifo, make_socket, make_loop])
def test_no_command_waits_for_what_is_no_file(
    kind: str, make: Callable[[Path], object], places: Places, capfd: pytest.CaptureFixture[str]
) -> None:
    it = f"it{SUFFIXES.get(kind, '.yaml')}"
    make(Path(it))
    command = FILES[kind].replace("IT", it).replace("CHECKPOINT/", f"{places['CHECKPOINT']}/")
    assert it in refused(command.split(), places, capfd)


@pytest.mark.parametrize("kind", FILES)
def test_names_longer_than_the_system_takes(kind: str, places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    command = FILES[kind].replace("IT", LONG).replace("CHECKPOINT/", f"{places['CHECKPOINT']}/")
    error = refused(command.split(), places, capfd)
    assert "File name too long" in error or " ..." in error


JSON: dict[str, str | bytes] = {
    "digits": '{"a": 1%s}' % ("0" * 5000),
    "deep": "[" * 100_000 + "]" * 100_000,
    "NaN": '{"blocks": [NaN]}',
    "list": "[]",
    "UTF-16": "{}".encode("utf-16"),
    "escape": '{"\\u001b[31mred": "\\u009b2J"}',
}


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("file", ["plan", "manifest", "config", "published configuration"])
def test_json_from_outside(kind: str, file: str, places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    content = JSON[kind]
    shutil.copytree(places["CHECKPOINT"], "checkpoint")
    shutil.copytree(places["BUNDLE"], "bundle")
    Path("bundle/manifest.sha256").unlink(missing_ok=True)
    path, command = {
        "plan": ("it.json", "sample BUNDLE --plan it.json"),
        "manifest": ("bundle/manifest.json", "inspect bundle"),
        "config": ("checkpoint/config.json", "export checkpoint -o out"),
        "published configuration": ("it.json", "import checkpoint/model.safetensors --config it.json -o out"),
    }[file]
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    assert Path(path).name in refused(command.split(), places, capfd)


def test_strings_of_a_manifest_give_the_terminal_no_orders(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    orders = "\x1b[31m\x9b2J\u202e[/bold][red]"
    shutil.copytree(places["BUNDLE"], "bundle")
    edit_manifest(Path("bundle"), lambda manifest: manifest["provenance"]["tools"].update({orders: orders}))
    assert main(["inspect", "bundle"]) == 0
    shown = r"\x1b[31m\x9b2J\u202e[/bold][red]"
    out = capsys.readouterr().out
    assert f"{shown} {shown}" in out.replace("\n", " ") and not set(out) & set("\x1b\x9b\u202e")
    assert main(["inspect", "bundle", "--json"]) == 0
    assert orders in json.loads(capsys.readouterr().out)["made"]


ARRAYS: dict[str, tuple[Any, str]] = {
    "text": (np.array(["a", "b"]), "holds str32, expected numbers"),
    "objects": (np.array([{}, []], object), "holds object, expected numbers"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "expected numbers"),
    "a number": (np.float32(1), r"found shape \[\], expected \[N, tokens, width\]"),
    "nothing": (np.zeros((0, 8, 32), np.float32), r"found shape \[0, 8, 32\]"),
    "NaN": (np.full((1, 8, 32), np.nan), "holds NaN or infinite values"),
    "more than float32 holds": (np.full((1, 8, 32), 1e300), "holds NaN or infinite values"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_no_condition(kind: str, places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    array, found = ARRAYS[kind]
    np.save("it.npy", array, allow_pickle=True)
    error = refused(["sample", "CAPTIONED", "--condition", "it.npy", "--threads", "1"], places, capfd)
    assert re.search(found, error)


@pytest.mark.parametrize("name", ["work", "manifest"])
def test_a_lock_that_is_a_link_is_not_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep this")
    (tmp_path / f".{name}.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(BundleError, match=rf"\.{name}\.lock: is a link"), bundle_lock(tmp_path, name):
        pass
    assert (tmp_path / "mine").read_text() == "keep this"


def test_a_name_that_is_not_utf8(places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    with open(b"\x80.png", "wb") as file:
        file.write(b"no image")
    assert r"\udc80.png: is not an image" in refused(["score", "BUNDLE", "\udc80.png", "--labels", "1"], places, capfd)


def test_a_caption_that_is_not_utf8(places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    error = refused(["sample", "CAPTIONED", "--captions", "a\udc80b", "--threads", "1"], places, capfd)
    assert r"does not take the caption 'a\udc80b'" in error


def test_a_picture_with_sixteen_bits_is_scored_as_what_it_shows(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save("eight.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save("sixteen.png")
    command = ["score", str(places["BUNDLE"]), "--labels", "1", "--threads", "1", "--json"]
    scores = []
    for name in ("eight.png", "sixteen.png"):
        assert main([*command, name]) == 0
        scores.append(json.loads(capsys.readouterr().out)["bits_per_dim"])
    assert scores[0] == scores[1]


# Commands and what they write; the limit is on each file, as a quota or a full disk is on all of them.
FULL = {
    "export": "export CHECKPOINT -o out/bundle",
    "import": "import CHECKPOINT/model.safetensors --config CHECKPOINT/config.json -o out/checkpoint",
    "sample": "sample BUNDLE --labels 1 --count 64 --threads 1 --out out/x.png --latents out/x.npy",
    "score": "score BUNDLE image.png --labels 1 --threads 1 --latents out/z.npy",
    "verify": "verify BUNDLE --variant cpu-fp32 --report out/report.html",
    # With such a budget each flow block takes one pass, which no load of the machine makes slower than its steps.
    "calibrate": "calibrate copy --plan --variant cpu-fp32 --threads 1 --repetitions 3 --images 2 --budget 10",
    "calibrate weights": "calibrate wide --weights int8 --lowering cpu --budget 1 --images 2 --threads 1",
    "calibrate plain weights": "calibrate wide --weights int8 --lowering cpu --plain",
    "train": "train recipe.yaml --out out/run",
}
FLOW = {"family": "starflow", "in_channels": 1, "img_size": 8, "channels": 32, "num_blocks": 1, "layers_per_block": 1}
RECIPE = f"""
model: {json.dumps(FLOW | {"head_dim": 32})}
data: {{kind: npz, path: data.npz}}
training: {{steps: 2, batch_size: 8, warmup_steps: 1}}
"""


@contextmanager
def no_file_beyond(most: int) -> Iterator[None]:
    """No file that this process writes, or one that it starts, may have more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_in(*folders: str | Path) -> dict[Path, bytes]:
    """Every file in folders, but for locks, which are empty."""
    paths = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in paths if path.suffix != ".lock"}


@pytest.mark.parametrize("command", FULL)
def test_a_file_that_cannot_grow_is_one_line(command: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Image.new("L", (8, 8)).save("image.png")
    Path("recipe.yaml").write_text(RECIPE)
    np.savez("data.npz", images=np.zeros((16, 8, 8, 1), np.uint8))
    shutil.copytree(places["BUNDLE"], "copy")
    if "wide" in FULL[command]:  # a matrix that is large enough to be quantised
        write_checkpoint(
            Path("checkpoint"), class_config(channels=64, num_blocks=1, layers_per_block=(1,), head_dim=64)
        )
        export_checkpoint("checkpoint", "wide")
    before = files_in("copy", "wide")
    words = FULL[command].replace("CHECKPOINT/", f"{places['CHECKPOINT']}/").split()
    words = [str(places.get(word, word)) for word in words]
    with no_file_beyond(100):
        if command == "train":  # TensorBoard has a thread, which may outlive the command
            done = subprocess.run([sys.executable, "-m", "starflow.runtime", *words], capture_output=True, text=True)
            status, said = done.returncode, done.stderr
        else:
            status, said = main(words), capsys.readouterr().err
    *progress, line = said.splitlines()
    assert status == 1 and (command == "train" or not progress)
    assert "cannot be written" in line and "internal error" not in line and "Traceback" not in said
    left = [path for path in Path("out").rglob("*") if path.is_file() and path.parts[1] != "run"]
    assert not left and files_in("copy", "wide") == before
