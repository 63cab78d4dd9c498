"""The one console that tables, figures and progress are printed on."""

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from starflow.runtime.plain.printable import printable


class Terminal(Console):
    """A console that takes no orders from what it prints: neither control characters nor, unless asked, Rich's markup.

    Text is made printable before Rich adds colours and cursor movements of its own.
    """

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as Rich lays it out: made printable, so that its width is what is shown."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, without control characters of its text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    @property
    def file(self) -> IO[str]:
        """Where it writes: below a `PrintableStream`, which would escape the colours."""
        stream = super().file
        return getattr(stream, "unescaped", stream)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file
