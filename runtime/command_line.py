"""The command `starflow`: finds the command that was asked for, runs it, and turns errors into one line.

Commands are entry points of the group `starflow.commands`, so that this module needs to know none of them and the
runtime imports nothing of the other folders. A command is a module with

* a docstring: the first line is its help, the whole of it (with an `Example` section) the text of `--help`;
* `configure(parser)`: adds its arguments;
* `run(arguments) -> int`: does the work and returns the exit status. Heavy packages are imported here, not before.

Exit status: 0 fine, 1 failed, 2 wrong use, 130 interrupted.
"""

import argparse
import difflib
import inspect
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points, version
from typing import NoReturn, Protocol, cast

from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.plain.install_hint import install_hint

DISTRIBUTION = "starflow-compiler"
COMMANDS = "starflow.commands"

# Which extra brings an optional package, by the name it is imported under.
EXTRA_OF = {
    "torch": "train",
    "yaml": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "matplotlib": "export",
    "onnx": "export",
    "polygraphy": "export",
    "tensorrt": "tensorrt",
    "cuda": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tokenizers": "text",
    "transformers": "text",
}


class Command(Protocol):
    """What a command's module holds."""

    __doc__: str | None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `starflow` with `argv` (the process's own arguments when None) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    speaker = "starflow"
    try:
        with _termination_as_interrupt():
            if not arguments:
                print(_overview(), file=sys.stderr)
                status = 2
            elif arguments[0] in ("-h", "--help"):
                print(_overview())
                status = 0
            elif arguments[0] == "--version":
                print(f"starflow {version(DISTRIBUTION)}")
                status = 0
            else:
                entry = _find(arguments[0])
                speaker = f"starflow {entry.name}"
                status = _run(entry, arguments[1:])
            sys.stdout.flush()  # a reader that went away shows here, not while Python shuts down
        return status
    except StarflowError as error:
        print(f"{speaker}: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. Without this, Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(entry: EntryPoint, arguments: Sequence[str]) -> int:
    try:
        command = cast(Command, entry.load())
        parser = argparse.ArgumentParser(
            prog=f"starflow {entry.name}",
            description=inspect.cleandoc(command.__doc__ or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.configure(parser)
        try:
            parsed = parser.parse_args(arguments)
        except SystemExit as finished:  # argparse has printed its help (0) or what was wrong (2)
            return cast(int, finished.code)
        return command.run(parsed)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        extra = _extra_for(entry, package)
        message = f"needs the package {package}, which is not installed: {install_hint(extra)}"
        raise StarflowError(message) from error


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name)}


def _find(name: str) -> EntryPoint:
    entries = _entries()
    if name in entries:
        return entries[name]
    kind = "option" if name.startswith("-") else "command"
    nearest = difflib.get_close_matches(name, entries, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "see starflow --help"
    raise UsageError(f"unknown {kind} {name}; {hint}")


def _overview() -> str:
    entries = _entries()
    width = max((len(name) for name in entries), default=0)
    lines = [
        "usage: starflow COMMAND ...",
        "       starflow COMMAND --help",
        "",
        "A deployment compiler for autoregressive flows: a trained checkpoint goes in, a self-contained bundle comes out.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {_summary(entry)}" for name, entry in entries.items()),
        "",
        "options:",
        "  -h, --help  show this help and exit",
        "  --version   show the version and exit",
    ]
    return "\n".join(lines)


def _summary(entry: EntryPoint) -> str:
    try:
        documentation = entry.load().__doc__ or ""
    except Exception as error:  # one broken command must not hide the others
        return f"(unavailable: {error})"
    return inspect.cleandoc(documentation).partition("\n")[0]


def _extra_for(entry: EntryPoint, package: str) -> str:
    extra = EXTRA_OF[package]
    if extra == "train" and not entry.module.startswith("starflow.training."):
        return "export"  # which includes train: one install, not two
    return extra


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that a stopped container leaves nothing half-written either."""

    def interrupt(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
