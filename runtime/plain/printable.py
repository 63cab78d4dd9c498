"""Text that cannot steer a terminal: what names, captions and messages from files become before they are printed."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# What a terminal obeys instead of showing it: C0 and C1 controls (escape and carriage return among them), line separators, and
# the marks that turn the direction of the text around them. Lone surrogates, which stand for bytes of a name that are not
# UTF-8, cannot be encoded.
_LAYOUT = "\n\t"
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_OBEYED = re.compile(f"(?![{_LAYOUT}])[{_CONTROLS}]")
_ANY = re.compile(f"[{_CONTROLS}]")

MOST_CHARACTERS = 2000  # of a message: some quote what they found, and that may be long


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    r"""Text with what a terminal obeys written out, such as \x1b; line ends and tabs stay."""
    return _OBEYED.sub(_escaped, text)


def one_line(text: str) -> str:
    """A message as one printable line of bounded length."""
    line = _ANY.sub(_escaped, text.strip())
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


class PrintableStream:
    """A text stream that makes everything printable.

    Attributes:
        unescaped: The stream below, for those who write control sequences of their own, such as colours.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream

    def write(self, text: str) -> int:
        """Write the text, made printable, and as far as the stream's encoding allows."""
        encoding = self.unescaped.encoding or "utf-8"
        self.unescaped.write(printable(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """While the context lasts, everything that is printed to standard output and standard error is made printable."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, PrintableStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
