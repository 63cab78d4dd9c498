"""What the HTML reports share: one style, sections, tables, pictures inside the page."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from numpy import uint8
from numpy.typing import NDArray
from PIL import Image

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
td.wrap { white-space: normal; }
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


def section(title: str, body: Iterable[str], text: str = "") -> Iterator[str]:
    """A heading, a paragraph, and a box with `body`."""
    yield f"<h2>{title}</h2>"
    if text:
        yield f"<p>{escape(text)}</p>"
    yield "<section>"
    yield from body
    yield "</section>"


def table(columns: Sequence[str], rows: Iterable[str], numbers: Sequence[int] = ()) -> Iterator[str]:
    """A table of finished rows; columns in `numbers` are aligned to the right."""
    heads = "".join(
        f"<th{' class=number' if index in numbers else ''}>{escape(column)}</th>"
        for index, column in enumerate(columns)
    )
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'
    yield from rows
    yield "</tbody></table></div>"


def png(image: NDArray[uint8]) -> str:
    """[H, W, C] as the address of a picture that is inside the page."""
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
