"""The one family of errors every part of starflow raises.

A message is one line: what was found, where, what was expected, and what mends it. The command line prints it as it is
and exits with `exit_status`; anything that is not a `StarflowError` is a bug, whose traceback `--debug` shows.
"""

import os
import re

from starflow.runtime.plain.printable import one_line

DESCRIPTOR = re.compile(r"/proc/self/fd/\d+")


class StarflowError(Exception):
    """Something the user can mend."""

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(DESCRIPTOR.sub(_folder_name, message)))


def _folder_name(descriptor: re.Match[str]) -> str:
    """The name of a folder that is read through a descriptor (`held_folder`), which says nothing to anybody."""
    try:
        return os.readlink(descriptor[0])
    except OSError:
        return descriptor[0]


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says; its type, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UsageError(StarflowError):
    """The request itself is wrong: an unknown label, a negative guidance weight, a shape that does not fit."""

    exit_status = 2


class BundleError(StarflowError):
    """A bundle is damaged, truncated, foreign, or does not hold what was asked for."""


class CheckpointError(StarflowError):
    """A checkpoint or a published weights file cannot be read as the model its configuration describes."""


class RecipeError(UsageError):
    """A training recipe does not say what it must, or says something unknown."""


class DataError(StarflowError):
    """Training data cannot be read."""


class ExportError(StarflowError):
    """A checkpoint cannot be turned into a bundle."""


class BackendError(StarflowError):
    """A backend cannot run here, or did not get the device it was asked to use."""


class NotFiniteError(BackendError):
    """A model made NaN or infinity of what it was given, such as a guidance weight it was not trained for."""


class IntegrationError(StarflowError):
    """An ODE cannot be integrated as asked: it diverges, or a tolerance is out of reach."""
