"""Who may import whom: the table in docs/architecture.md, enforced."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The runtime's own vocabulary: words, files and pictures, with neither torch nor ONNX Runtime behind them.
PLAIN = tuple(
    f"starflow.runtime.{name}"
    for name in (
        "atomic_write",
        "bits_per_dim",
        "caption_template",
        "decode_plan",
        "errors",
        "guidance",
        "images",
        "progress",
        "validation",
    )
)

# What the modules of a folder may import of starflow.
MAY_IMPORT = {
    "runtime": ("starflow.runtime",),
    "training": ("starflow.training", *PLAIN),
    "export": ("starflow.export", "starflow.training", "starflow.runtime"),
    "calibration": ("starflow.calibration", "starflow.export", "starflow.training", "starflow.runtime"),
}

# Packages the base install does not bring and the runtime must do without.
NOT_IN_RUNTIME: tuple[str, ...] = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "sklearn",
    "yaml",
    "tensorboard",
    "transformers",
    "diffusers",
)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of everything `source` imports, at any depth of the code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = parents[: len(parents) - node.level + is_package]
                origin = ".".join([*kept, origin]).rstrip(".")
            # `from starflow.runtime import errors` names a module, `from starflow.runtime import Sampler` does not:
            # the longer name tells them apart without importing anything, because rules are prefixes.
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def offences(folder: str, source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module of `folder` imports against the rule."""
    allowed = PLAIN if module in PLAIN else MAY_IMPORT[folder]
    forbidden = NOT_IN_RUNTIME if folder == "runtime" else ()
    if module in PLAIN:
        forbidden = (*NOT_IN_RUNTIME, "onnxruntime")
    return [
        f"{module}:{line} imports {name}"
        for line, name in imported_modules(source, module, is_package)
        if (within(name, ("starflow",)) and not within(name, allowed)) or within(name, forbidden)
    ]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folder_imports_only_what_the_rule_allows(repository: Path, folder: str) -> None:
    files = sorted((repository / folder).rglob("*.py"))
    assert files, f"{folder}/ holds no Python"
    found = []
    for file in files:
        parts = file.relative_to(repository).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(["starflow", *(parts[:-1] if is_package else parts)])
        found += offences(folder, file.read_text(encoding="utf-8"), module, is_package)
    assert found == []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("runtime", "import torch"),
        ("runtime", "def late():\n    from torch.nn import functional"),
        ("runtime", "import onnx.helper"),
        ("runtime", "from starflow import export"),
        ("runtime", "from ..training import model"),
        ("training", "from starflow.runtime import Sampler"),
        ("training", "import starflow.export.bundle"),
        ("export", "from starflow.calibration.plans import choose"),
    ],
)
def test_rule_sees_what_it_forbids(folder: str, source: str) -> None:
    assert len(offences(folder, source, f"starflow.{folder}.somewhere")) == 1


def test_rule_keeps_plain_modules_plain() -> None:
    (module, *_) = PLAIN
    assert offences("runtime", "import onnxruntime", module)
    assert offences("runtime", "from starflow.runtime.sampler import Sampler", module)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("runtime", "import onnxruntime"),
        ("runtime", "from . import errors"),
        ("training", "from starflow.runtime.plain.errors import DataError"),
        ("training", "from starflow.runtime import errors"),
        ("export", "from starflow.training.autoregressive.model import Model"),
    ],
)
def test_rule_lets_pass_what_it_allows(folder: str, source: str) -> None:
    assert offences(folder, source, f"starflow.{folder}.somewhere") == []


def in_fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    loaded = in_fresh_python(
        "import sys, starflow.runtime; print(*{name.partition('.')[0] for name in sys.modules})"
    ).split()
    assert not set(loaded) & {*NOT_IN_RUNTIME, "transformers"}


def test_importing_the_runtime_is_quick() -> None:
    """The runtime adds less than 0.3 s to what ONNX Runtime and NumPy take; the best of three counts."""
    code = (
        "import time, numpy, onnxruntime; start = time.perf_counter(); "
        "import starflow.runtime; print(time.perf_counter() - start)"
    )
    best = min(float(in_fresh_python(code)) for _ in range(3))
    print(f"import starflow.runtime: {best:.3f} s beyond onnxruntime")
    assert best < 0.3
