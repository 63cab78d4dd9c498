"""Tests in a child process that sees a module as a mutant has it. Nothing on disk changes."""

import ast
import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import math
import os
import resource
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.mutation.mutants import draw_mutants
from tests.mutation.targets import Target

OURS = ("starflow", "tests")
OPTIONS = ("--noconftest", "-p", "no:cacheprovider")


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, with another source."""

    def __init__(self, target: Target, code: str) -> None:
        self._target, self._code = target, code

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._target.module:
            return None
        return importlib.util.spec_from_file_location(name, Path(self._target.path).resolve(), loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._code, self._target.path, "exec"), module.__dict__)


class Trials:
    """Runs the tests of a target on mutants, each in a fork of a process that has imported everything the tests need."""

    def __init__(self, target: Target) -> None:
        self._target = target
        for test in target.tests:
            importlib.import_module(test.partition("::")[0].removesuffix(".py").replace("/", "."))
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.main(["--collect-only", "-q", *OPTIONS, *target.tests])  # imports pytest's own parts
        self._stale = _readers(target.module)

    def run(self, code: str, limit: int) -> tuple[bool, float]:
        """Whether the tests pass with this source of the module, and the processor seconds they took; more than the limit fail."""
        child = os.fork()
        if not child:
            self._test(code, limit)
        _, status, used = os.wait4(child, 0)
        return os.waitstatus_to_exitcode(status) == 0, used.ru_utime + used.ru_stime

    def _test(self, code: str, limit: int) -> None:
        status: int = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            for name in self._stale:
                sys.modules.pop(name, None)
                package, _, own = name.rpartition(".")  # `from package import own` asks the package first
                if package in sys.modules:
                    vars(sys.modules[package]).pop(own, None)
            sys.meta_path.insert(0, _Mutated(self._target, code))
            status = int(pytest.main(["-x", "-q", *OPTIONS, *self._target.tests]))
        finally:
            os._exit(status)


def _readers(module: str) -> set[str]:
    """The module and every module of ours that imports it, directly or not."""
    imports = {name: _imports(name) for name in sys.modules if name.partition(".")[0] in OURS}
    found, new = set[str](), {module}
    while new:
        found |= new
        new = {name for name, imported in imports.items() if imported & found} - found
    return found


def _imports(name: str) -> set[str]:
    file = getattr(sys.modules[name], "__file__", None)
    if file is None:
        return set()
    found = set[str]()
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def survivors(target: Target, most: int, seed: int, limit: float) -> tuple[int, list[str]]:
    """The number of mutants that were tried, and the diffs of those that survived.

    Args:
        target: The module.
        most: Number of mutants.
        seed: Of the draw.
        limit: Seconds after which no further mutant is tried.

    Raises:
        RuntimeError: the tests fail without any change.
    """
    start, source = time.monotonic(), Path(target.path).read_text(encoding="utf-8")
    trials = Trials(target)
    passed, seconds = trials.run(source, 600)
    if not passed:
        raise RuntimeError(f"{target.path}: {' '.join(target.tests)} fail without any change")
    tried, survived = 0, list[str]()
    for mutant in draw_mutants(source, most, seed):
        code = mutant.code(source)
        if code is None:
            continue
        if time.monotonic() - start > limit:
            break
        tried += 1
        if trials.run(code, math.ceil(3 + 4 * seconds))[0]:
            survived.append(mutant.diff(source))
    return tried, survived
