"""A command of starflow, run in this process as a user's shell would see it."""

import contextlib
import io
import sys
from pathlib import Path

from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import StarflowError

PROGRESS = ("step ", "resuming ")  # how lines begin that a training says while it goes well


class CommandError(Exception):
    """A command ended with a status, and said other than one line about it."""


class InternalError(Exception):
    """The last resort of the command line made one line of an error that nobody foresaw."""


def run_command(*words: str | Path) -> str:
    """Run a command; return what it printed on stdout.

    Raises:
        StarflowError: it said in one line on stderr why it failed.
        InternalError: it said so, but the error is a bug.
        CommandError: it failed in another way.
    """
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main([str(word) for word in words])
    sys.stderr.write(errors.getvalue())  # for whoever looks at all that reaches the terminal
    sys.stdout.write(output.getvalue())
    if status == 0:
        return output.getvalue()
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith(PROGRESS)]
    start, _, message = "".join(lines).partition(": error: ")
    if len(lines) != 1 or status not in (1, 2) or not start.startswith("starflow"):
        raise CommandError(f"exit status {status} with {errors.getvalue()[:1000]!r}")
    if message.startswith("internal error"):
        raise InternalError(message)
    raise StarflowError(message)
