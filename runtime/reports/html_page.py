"""What the HTML reports share: the page, one style, sections, tables, images inside the page."""

import base64
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from itertools import chain, repeat
from pathlib import Path

from numpy import uint8
from numpy.typing import NDArray
from PIL import Image

from starflow.runtime.plain.atomic_write import write_text
from starflow.runtime.plain.images import grid

SMALLEST_IMAGE = 84  # pixels on the page; smaller ones are shown enlarged
STYLE = """
:root { --ink: #1d2129; --soft: #5b626d; --line: #e3e6ea; --good: #0a7d4f; --bad: #c2272d; --note: #9a6700; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 22px; margin: 0 0 2px; }
h2 { font-size: 17px; margin: 40px 0 6px; }
h3 { font-size: 15px; margin: 20px 0 2px; }
p { margin: 4px 0 10px; color: var(--soft); max-width: 84ch; }
section, header { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 22px; margin: 10px 0; }
header { border-left: 6px solid var(--good); padding: 22px 26px; margin-bottom: 18px; }
header.failed { border-left-color: var(--bad); }
header p { font-size: 16px; color: var(--ink); margin: 0; }
.verdict { color: var(--good); } .failed .verdict, .no { color: var(--bad); font-weight: 600; } .yes { color: var(--good); }
.note { color: var(--note); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 20px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); padding: 5px 10px 5px 0; }
td { padding: 4px 10px 4px 0; border-bottom: 1px solid #f0f2f4; white-space: nowrap; }
.wrap { white-space: normal; }
td.number, th.number { text-align: right; }
tr.first td { border-top: 1px solid var(--line); }
tr.failing td { background: #fdf1f1; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, "Segoe UI", Roboto, sans-serif !important; }
img { image-rendering: pixelated; display: block; border-radius: 4px; max-width: 100%; height: auto; justify-self: start; }
figure { margin: 10px 0; display: grid; grid-template-columns: 210px 1fr; align-items: center; gap: 14px; }
figcaption { font-size: 13.5px; } .swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
details > summary { cursor: pointer; color: var(--soft); }
footer { color: var(--soft); font-size: 13px; margin-top: 28px; }
"""


def write_page(path: Path, title: str, body: Iterable[str], footer: str) -> None:
    """Write a page that needs nothing else; the same body gives the same bytes.

    Args:
        title: Plain text.
        body: HTML, line by line.
        footer: HTML at the end of the page.

    Raises:
        UsageError: the file cannot be written.
    """
    lines = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
        *body,
        f"<footer>{footer}</footer>\n</main>\n</body>\n</html>\n",
    )
    write_text(path, "\n".join(lines))


def verdict(title: str, text: str, *, passed: bool = True) -> str:
    """The head of a page or of one of its parts, HTML, with a bar that is green or red."""
    return f'<header class="{"passed" if passed else "failed"}"><h1>{title}</h1><p>{text}</p></header>'


def section(title: str, body: Iterable[str], text: str = "") -> Iterator[str]:
    """A heading, a paragraph of plain text, and a box with `body`."""
    yield f"<h2>{title}</h2>"
    if text:
        yield f"<p>{escape(text)}</p>"
    yield "<section>"
    yield from body
    yield "</section>"


def folded(summary: str, body: Iterable[str], *, opened: bool = False) -> Iterator[str]:
    """What the reader unfolds."""
    yield f"<details{' open' if opened else ''}><summary>{summary}</summary>"
    yield from body
    yield "</details>"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Collection[int] = (), kinds: Iterable[str] = ()
) -> Iterator[str]:
    """A table of cells of HTML; columns in `numbers` stand on the right, `kinds` are the CSS classes of the rows, if any."""
    heads = "".join(
        f"<th{' class=number' if index in numbers else ''}>{escape(column)}</th>"
        for index, column in enumerate(columns)
    )
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'
    for cells, kind in zip(rows, chain(kinds, repeat("")), strict=False):
        classes = f' class="{kind}"' if kind else ""
        marks = (' class="number"' if index in numbers else "" for index in range(len(cells)))
        yield f"<tr{classes}>{''.join(f'<td{mark}>{cell}</td>' for mark, cell in zip(marks, cells, strict=True))}</tr>"
    yield "</tbody></table></div>"


def swatch(colour: str) -> str:
    """A small square of a colour: the legend of a name in a table or caption."""
    return f'<span class="swatch" style="background:{colour}"></span>'


def images_row(name: str, images: NDArray[uint8], mark: str = "") -> str:
    """Images uint8 [N, H, W, C] side by side beside their name; `mark` is HTML before it."""
    sheet = grid(images, columns=len(images))
    width = sheet.shape[1] * max(1, -(-SMALLEST_IMAGE // images.shape[1]))
    picture = f'<img alt="samples of {escape(name)}" style="width:{width}px" src="{png(sheet)}">'
    return f"<figure><figcaption>{mark}{escape(name)}</figcaption>{picture}</figure>"


def png(image: NDArray[uint8]) -> str:
    """[H, W, C] as the address of a picture that is inside the page."""
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
