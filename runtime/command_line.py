"""The command `starflow`: finds the command that was asked for, runs it, and turns errors into one line.

Commands are entry points of the group `starflow.commands`, so that this module needs to know none of them and the
runtime imports nothing of the other folders. A command is a module with

* a docstring: the first line is its help, the whole of it (with an `Example` section) the text of `--help`;
* `configure(parser)`: adds its arguments;
* `run(arguments) -> int`: does the work and returns the exit status. Heavy packages are imported here, not before.

Exit status: 0 done; 1 failed; 2 wrong use, a missing file or folder among it; 130 interrupted. Whatever goes wrong is one line on
standard error. `--debug`, before or after the command, shows the traceback as well.
"""

import argparse
import difflib
import inspect
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, NoReturn, Protocol, cast

from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.plain.install_hint import install_hint, onnxruntime_hint
from starflow.runtime.plain.limits import MOST_DIGITS
from starflow.runtime.plain.printable import one_line, printable_output

DISTRIBUTION = "starflow-compiler"
COMMANDS = "starflow.commands"
DEBUG = "--debug"
MOST_QUOTED = 80  # characters of what a user gave

# Which extra brings an optional package, by the name it is imported under.
EXTRA_OF = {
    "torch": "train",
    "yaml": "train",
    "scipy": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "onnxruntime": "cpu",
    "matplotlib": "export",
    "onnx": "export",
    "polygraphy": "export",
    "tensorrt": "tensorrt",
    "cuda": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "fastapi": "serve",
    "fastapi_offline": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "pyarrow": "parquet",
    "ray": "ray",
    "tokenizers": "text",
    "huggingface_hub": "hub",
    "transformers": "text",
}

# Headings of `starflow --help`, by the package that a command comes from.
TOPICS = {
    "starflow.training": "train a model, or import one",
    "starflow.export": "write a bundle, build engines for it, verify it",
    "starflow.calibration": "make a bundle faster",
    "starflow.runtime": "use a bundle and measure it",
    "": "other commands",
}

# What argparse says is wrong, and how we say it.
WORDING = (
    (r"argument (\S+): invalid _?int value: (.*)", r"\1: found \2, expected a whole number"),
    (r"argument (\S+): invalid _?float value: (.*)", r"\1: found \2, expected a number"),
    (r"argument (\S+): (found .*)", r"\1: \2"),
    (r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", r"\1: found \2, expected one of \3"),
    (r"argument (\S+): expected (?:one|at least one) argument", r"\1: needs a value"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 and \2 exclude each other; leave one out"),
    (r"the following arguments are required: (.*)", r"missing: \1"),
    (r"one of the arguments (.*) is required", r"missing: one of \1"),
    (r"unrecognized arguments: (.*)", r"unexpected: \1"),
)


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
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = DEBUG in options
    if arguments[:1] == [DEBUG]:
        del arguments[0]
    _occupy_standard_streams()
    with printable_output(), _termination_as_interrupt():
        return _guarded(arguments, debug=debug)


def _guarded(arguments: Sequence[str], *, debug: bool) -> int:
    """Run a command; whatever goes wrong becomes one line and an exit status."""
    entry = None
    try:
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
            status = _run(entry, arguments[1:])
        sys.stdout.flush()  # a reader that went away shows here, not while Python shuts down
        return status
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of libraries in Rust are no Exception
        status, message = _outcome(error)
        if debug and message and not isinstance(error, KeyboardInterrupt):
            _complain("".join(traceback.format_exception(error)))
        if message:
            speaker = f"starflow {entry.name}" if entry else "starflow"
            start = "" if isinstance(error, KeyboardInterrupt) else f"{speaker}: error: "
            _complain(start + one_line(message) + "\n")
        return status


def _outcome(error: BaseException) -> tuple[int, str | None]:
    """Exit status and message of what went wrong; None where there is nothing to say."""
    match error:
        case StarflowError():
            return error.exit_status, str(error)
        case KeyboardInterrupt():
            return 130, "interrupted; nothing half-written is left"
        case BrokenPipeError():  # the reader (`| head`) has what it wanted
            _drop_output()
            return 1, None
        case MemoryError():
            return 1, "there is not enough memory; give less at once, or use a larger machine"
        case OSError():
            if error.filename is None:
                _drop_output()
            misused = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            return 2 if misused else 1, f"{error.filename or 'output'}: {error.strerror or error}"
        case _:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return 1, f"internal error: {what.splitlines()[0]}; {DEBUG} shows where it happened"


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody listens any more
        sys.stderr.write(text)
        sys.stderr.flush()


def _occupy_standard_streams() -> None:
    """Stand in for streams that the process was started without.

    The null device gets their numbers, else a file could get them and be printed to. What is printed to standard output fails
    there as on a full disk; what is printed to standard error is lost.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull)  # noqa: SIM115  # for reading
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _drop_output() -> None:
    """Without this, Python complains at exit of what it could not write."""
    with suppress(OSError, ValueError, AttributeError):  # no output, or none with a number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _int(text: str) -> int:
    """A whole number of 64 bits; more digits are none of ours, and take long to convert."""
    digits = text.strip().lstrip("+-0").replace("_", "")
    if not digits.isascii():
        raise ValueError
    if digits.isdigit() and len(digits) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at most {MOST_DIGITS} digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a finite number")
    return number


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(rf"'([^']{{{MOST_QUOTED}}})[^']+'", r"'\1...'", message)
        for pattern, words in WORDING:
            if match := re.fullmatch(pattern, message):
                message = match.expand(words)
                break
        raise UsageError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse itself takes no notice of a failure."""
        print(message, end="", file=file or sys.stderr)

    def refuse_missing_values(self, parsed: argparse.Namespace) -> None:
        """Before Python 3.13, argparse takes `--` for the value of an option, and makes an empty list of it."""
        for action in self._actions:
            if (
                action.option_strings
                and action.nargs is None
                and getattr(parsed, action.dest, None) == [] != action.default
            ):
                self.error(f"argument {'/'.join(action.option_strings)}: expected one argument")

    def refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        """An option that is not known, before argparse complains of what that leaves missing."""
        known = [option for action in self._actions for option in action.option_strings]
        shown = [option for a in self._actions if a.help != argparse.SUPPRESS for option in a.option_strings]
        for argument in arguments:
            name = argument.partition("=")[0]
            if argument == "--":
                return
            if name.startswith("--") and name not in known:
                raise UsageError(_unknown("option", name, shown, f"{self.prog} --help"))


def _run(entry: EntryPoint, arguments: Sequence[str]) -> int:
    try:
        command = cast(Command, entry.load())
        parser = _Parser(
            prog=f"starflow {entry.name}",
            description=inspect.cleandoc(command.__doc__ or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.register("type", int, _int)
        parser.register("type", float, _float)
        command.configure(parser)
        parser.add_argument(DEBUG, action="store_true", help="if something goes wrong, also show where in the code")
        parser.usage = f"{parser.prog} {_usage(parser)}"
        parser.refuse_unknown_options(arguments)
        try:
            parsed = parser.parse_args(arguments)
        except SystemExit as finished:  # argparse has printed its help
            return cast(int, finished.code)
        parser.refuse_missing_values(parsed)
        return command.run(parsed)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        extra = _extra_for(entry, package)
        how = onnxruntime_hint() if extra == "cpu" else install_hint(extra)
        raise StarflowError(f"needs the package {package}, which is not installed: {how}") from error


def _usage(parser: argparse.ArgumentParser) -> str:
    """What has to be given; the options are listed below it."""
    given: list[str] = []
    for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):
        if action.required:
            name = action.metavar or action.dest.upper()
            words = (*action.option_strings[:1], name, *(["..."] if action.nargs == "+" else []))
            given.append(" ".join(map(str, words)))
    return " ".join([*given, "[options]"])


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name)}


def _find(name: str) -> EntryPoint:
    entries = _entries()
    if name in entries:
        return entries[name]
    kind = "option" if name.startswith("-") else "command"
    raise UsageError(_unknown(kind, name, entries, "starflow --help"))


def _unknown(kind: str, name: str, known: Sequence[str] | dict[str, EntryPoint], help_command: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name}; " + (f"did you mean {nearest[0]}?" if nearest else f"see {help_command}")


def _overview() -> str:
    entries = _entries()
    width = max((len(name) for name in entries), default=0)
    lines = [
        "usage: starflow COMMAND ...",
        "       starflow COMMAND --help",
        "",
        "A deployment compiler for flows: a trained checkpoint goes in, a self-contained bundle that runs anywhere comes out.",
    ]
    for package, topic in TOPICS.items():
        own = [entry for entry in entries.values() if _package(entry) == package]
        if own:
            lines += ["", f"{topic}:", *(f"  {entry.name:<{width}}  {_summary(entry)}" for entry in own)]
    lines += [
        "",
        "options:",
        "  -h, --help  show this help and exit",
        "  --version   show the version and exit",
        "  --debug     if something goes wrong, also show where in the code; goes before or after the command",
        "",
        "Exit status: 0 done; 1 failed; 2 wrong use, such as a missing file; 130 interrupted.",
    ]
    return "\n".join(lines)


def _package(entry: EntryPoint) -> str:
    return next(package for package in TOPICS if f"{entry.module}.".startswith(f"{package}." if package else ""))


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
