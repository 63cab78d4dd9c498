"""Where neither build of ONNX Runtime is installed: one line says which extra to choose, and what needs none works."""

import json
import subprocess
import sys
from pathlib import Path

from starflow.runtime.plain.install_hint import onnxruntime_hint

# Runs commands one after the other in one process, and prints status, standard output and standard error of each.
RUN = """
import contextlib, io, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from starflow.runtime.command_line import main
said = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    said.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(said))
"""


def run(folder: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return [(status, out, err) for status, out, err in json.loads(done.stdout)]


def test_every_command_that_needs_it_says_which_extra_to_choose(
    repository: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle, image = str(tiny_bundle), str(tmp_path / "image.png")
    checkpoint = str(repository / "examples" / "digits" / "checkpoint")
    Path(image).write_bytes((repository / "docs" / "assets" / "digits-samples.png").read_bytes())
    commands = [
        ["sample", bundle, "--out", "out.png"],
        ["bench", bundle],
        ["score", bundle, image],
        ["serve", bundle, "--port", "0"],
        ["generate", bundle, "--count", "2", "--shards", "1", "--out", "set"],
        ["calibrate", "digits.bundle", "--weights", "int8", "--images", "2"],
        ["calibrate", "digits.bundle", "--plan", "--images", "2"],
        ["verify", "digits.bundle", "--checkpoint", checkpoint],
    ]
    exported, *said = run(tmp_path, ["export", checkpoint, "-o", "digits.bundle", "--batch", "2"], *commands)
    assert exported[0] == 0, exported[2]
    left = sorted(str(path) for path in tmp_path.rglob("*") if "digits.bundle" not in str(path))
    for command, (status, _, err) in zip(commands, said, strict=True):
        assert status == 1, (command, err)
        assert err.count("\n") == 1 and err.endswith(f"not installed: {onnxruntime_hint()}\n"), (command, err)
    assert left == [image], "something half-made is left"


def test_what_needs_none_works(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = str(tiny_bundle)
    said = run(
        tmp_path,
        ["--help"],
        ["sample", "--help"],
        ["inspect", bundle],
        ["doctor"],
        ["copy", bundle, "--out", "copy.bundle"],
        ["triton", bundle, "--out", "repository"],
    )
    for status, out, err in said:
        assert status == 0 and "unavailable" not in out, err


def test_the_python_api_says_so_when_a_backend_is_first_used(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from starflow.runtime import Bundle, Sampler, StarflowError\n"
        "bundle = Bundle.open(sys.argv[1])\n"
        "for _ in range(2):\n"  # the second import is not the first
        "    try:\n        Sampler.open(bundle)\n    except StarflowError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"ONNX Runtime is not installed: {onnxruntime_hint()}"] * 2


def test_files_that_another_build_left_are_not_taken_for_it(tiny_bundle: Path, tmp_path: Path) -> None:
    """Uninstalling one of two builds removes the files of both, and leaves the folder."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from starflow.runtime.command_line import main\n"
        "raise SystemExit(main(['sample', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "files are incomplete" in done.stderr
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu; pip install onnxruntime;" in done.stderr


def test_importing_needs_none() -> None:
    modules = (
        "starflow.runtime",
        "starflow.runtime.diagnostics.benchmark",
        "starflow.export.exporter",
        "starflow.training.trainer",
    )
    code = f"import sys; sys.modules['onnxruntime'] = None; import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], check=True)
