"""Hostile options and input files of `sample`, `score` and `calibrate` are refused with one line, or understood."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator

from tests.attack.array_damage import damaged_array, npy
from tests.attack.byte_damage import damaged_bytes
from tests.attack.command import run_command
from tests.attack.file_damage import replace_file
from tests.attack.fuzz import Damage
from tests.attack.honest import starflow
from tests.attack.image_damage import damaged_image, honest_image
from tests.attack.json_damage import damaged_json

COMMANDS: dict[str, tuple[str, ...]] = {
    "sample options": ("sample", "class", "--labels", "1,2", "--threads", "1", "--out", "a.png"),
    "sample plan": ("sample", "class", "--labels", "1", "--threads", "1", "--out", "a.png", "--plan", "plan.json"),
    "sample solver": (
        "sample",
        "velocity",
        "--labels",
        "1",
        "--threads",
        "1",
        "--out",
        "a.png",
        "--plan",
        "solver.json",
    ),
    "sample captions": ("sample", "captions", "--threads", "1", "--out", "a.png", "--captions-file", "captions.txt"),
    "sample condition": (
        *("sample", "captions", "--threads", "1", "--out", "a.png", "--guidance", "1"),
        *("--condition", "condition.npy", "--null-condition", "null.npy"),
    ),
    "score image": ("score", "class", "image.png", "--labels", "7", "--threads", "1", "--latents", "z.npy"),
    "score array": ("score", "class", "x.npy", "--labels", "7", "--threads", "1"),
    "calibrate options": ("calibrate", "class", "--plan", "--images", "1", "--budget", "0.9", "--threads", "1"),
}
WRITTEN = ("a.png", "z.npy")
NUMBER_OPTIONS = {
    "sample options": ("--count", "--columns", "--threads", "--seed", "--guidance", "--denoising-rate"),
    "calibrate options": ("--images", "--budget", "--guidance", "--seed", "--threads"),
    "sample solver": ("--steps", "--tolerance"),
    "score image": ("--noise-std", "--seed", "--threads"),
}
# What is right, and takes a minute: fewer are asked for in its place.
HONEST_WORK = {("--images", "10000"): "20"}
TEXT_OPTIONS = {
    "sample options": (
        "--labels",
        "--plan",
        "--variant",
        "--backend",
        "--provider",
        "--shape",
        "--denoise",
        "--out",
        "--latents",
    ),
    "calibrate options": ("--variant", "--chunks", "--data", "--report", "--shape"),
    "sample solver": ("--solver", "--shape", "--labels"),
    "score image": ("--latents", "--variant", "--labels"),
}
NUMBERS = (
    *(
        "-1",
        "0",
        "-0",
        "1",
        "3",
        "1000000000",
        "10000",
        "100000000000000000000",
        "2147483648",
        "9223372036854775808",
        "1e3",
        "0.5",
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "1e308",
        "1e400",
        "1_0",
        " 1",
        "²",
        "٣",
        "0x10",
        "1" * 5000,
        "",
        "one",
        "\x1b[31m",
        "\udcff",
        "--",
    ),
)
TEXTS = (
    *(
        "",
        " ",
        ",",
        "1,,2",
        "-",
        "0-",
        "-1",
        "9-0",
        "0-99999999999",
        "0-9,0-9",
        "10",
        "²",
        "nine",
        "1" * 5000,
        "0-" + "9" * 5000,
    ),
    *(
        "auto",
        "none",
        "8x8",
        "0x0",
        "-1x8",
        "99999999999x1",
        "8x8x8",
        "x",
        "8X8",
        "8\n8",
        "\x1b[31mred",
        "\udcff\udcfe",
        "a" * 300,
    ),
    *(
        "a" * 5000,
        ".",
        "..",
        "/",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/proc/self/mem",
        "class",
        "class/manifest.json",
        "~",
        "--",
    ),
    *(
        "a.png/b.png",
        "missing/../a.png",
        "out/",
        "out.jpg",
        ".png",
        "loop/a.png",
        "fifo",
        "[bold]",
        "%s",
        "$(true)",
        "*",
    ),
)
CAPTION_LINES = (
    *(
        "",
        " ",
        "\ufeffa red apple",
        "a\x00b",
        "\x1b[31mred",
        "\u2028",
        "\r",
        "red " * 20_000,
        "🙂" * 500,
        "\ud800",
        "[PAD]",
        "{caption}",
        "\x85a",
    ),
)


class Inputs:
    """Requests to whole bundles."""

    name = "inputs"

    def __init__(self, scratch: Path, artifacts: Path) -> None:
        self._source, self._artifacts = scratch / "inputs", artifacts

    def make(self) -> str:
        """Write the whole inputs; run this in a child."""
        shutil.rmtree(self._source, ignore_errors=True)
        self._source.mkdir(parents=True)
        os.chdir(self._source)
        for kind in ("class", "velocity", "captions"):
            shutil.copytree(self._artifacts / kind / "bundle", self._source / kind)
        draw = np.random.default_rng(0)
        (self._source / "condition.npy").write_bytes(npy(draw.standard_normal((2, 6, 16), np.float32)))
        (self._source / "null.npy").write_bytes(npy(draw.standard_normal((6, 16), np.float32)))
        (self._source / "x.npy").write_bytes(npy(draw.standard_normal((2, 1, 8, 8), np.float32)))
        (self._source / "image.png").write_bytes(honest_image((8, 8)))
        (self._source / "captions.txt").write_text("a red apple\ntwo cats\n")
        plan = ("calibrate", "--plan", "--images", "1", "--budget", "0.9", "--threads", "1", "--plan-file")
        starflow(plan[0], "class", *plan[1:], "plan.json")
        starflow(plan[0], "velocity", *plan[1:], "solver.json")
        os.symlink("loop", self._source / "loop")
        os.mkfifo(self._source / "fifo")
        return ""

    def honest(self) -> dict[str, Callable[[], str]]:
        return {kind: _attempt(self._source, words) for kind, words in COMMANDS.items()}

    def damage(self, draw: Generator, folder: Path) -> Damage:
        kind = list(COMMANDS)[draw.integers(len(COMMANDS))]
        words = COMMANDS[kind]
        for path in self._source.iterdir():
            if path.is_dir():
                shutil.copytree(path, folder / path.name, copy_function=os.link)
            elif path.is_symlink():
                (folder / path.name).symlink_to("loop")
            elif path.is_file() and path.name not in WRITTEN:
                os.link(path, folder / path.name)
        os.mkfifo(folder / "fifo")
        files = [folder / word for word in words if "." in word and word not in WRITTEN and not word.startswith("0")]
        if not files or (kind in NUMBER_OPTIONS and draw.random() < 0.3):
            words, note = _other_option(draw, kind, words)
        else:
            path = files[draw.integers(len(files))]
            note = f"{path.name}: {_damage_file(draw, path, folder)}"
        return Damage(note, _attempt(folder, words), kind, another=True)

    def left_over(self, folder: Path) -> list[str]:
        known = {path.name for path in self._source.rglob("*")}
        return [
            path.name
            for path in folder.rglob(".*")
            if path.name not in known and not path.name.endswith(".lock") and path.name != ".png"
        ]


def _other_option(draw: Generator, kind: str, words: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    numbers = draw.random() < 0.5
    options = (NUMBER_OPTIONS if numbers else TEXT_OPTIONS)[kind]
    option = options[draw.integers(len(options))]
    values = NUMBERS if numbers else TEXTS
    value = values[draw.integers(len(values))]
    value = HONEST_WORK.get((option, value), value)
    given = f"{option}={value}" if draw.random() < 0.7 else value
    extra = (given,) if given != value else (option, value)
    return (*words, *extra), f"{option} {value[:60]!r}"


def _damage_file(draw: Generator, path: Path, folder: Path) -> str:
    if draw.random() < 0.1:
        return replace_file(
            draw, path, [each for each in folder.iterdir() if each != path and each.name not in ("fifo", "loop")]
        )
    content = path.read_bytes()
    path.unlink()
    if path.suffix == ".npy":
        changed, note = damaged_array(draw, np.frombuffer(content[128:], np.float32).reshape(_shape(path)))
    elif path.suffix == ".png":
        changed, note = damaged_image(draw, (8, 8))
    elif path.suffix == ".json":
        changed, note = damaged_json(draw, content)
    elif draw.random() < 0.5:
        changed, note = damaged_bytes(draw, content)
    else:
        line = CAPTION_LINES[draw.integers(len(CAPTION_LINES))]
        changed, note = content + line.encode("utf-8", "surrogatepass") + b"\n", f"with {line[:20]!r}"
    path.write_bytes(changed)
    return note


def _shape(path: Path) -> tuple[int, ...]:
    return {"condition.npy": (2, 6, 16), "null.npy": (6, 16), "x.npy": (2, 1, 8, 8)}[path.name]


def _attempt(folder: Path, words: tuple[str, ...]) -> Callable[[], str]:
    def run() -> str:
        os.chdir(folder)
        run_command(*words)
        return "".join(f"{name} {len(Path(name).read_bytes())} " for name in WRITTEN if Path(name).is_file())

    return run
