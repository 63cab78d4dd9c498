"""One way to plot, checked by what it writes."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.reports.plot import FORMATS, check_plot, svg_plot, write_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(figure: "Figure") -> None:
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], label="a line")
    axes.legend()


@pytest.mark.parametrize("ending", FORMATS)
def test_a_plot_is_written_in_the_format_of_its_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new folder" / f"plot{ending.upper()}"
    write_plot(path, (4, 2), draw)
    first = path.read_bytes()
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending]
    assert first.startswith(start)
    if ending == ".png":
        assert Image.open(path).size == (520, 260)
    write_plot(path, (4, 2), draw)
    assert path.read_bytes() == first


def test_a_drawing_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_plot(path, (4, 2), lambda figure: 1 / 0)  # type: ignore[arg-type]
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_plots_of_a_page_share_no_id_and_point_at_their_own() -> None:
    pages = [svg_plot(name, (4, 2), draw) for name in ("first", "second")]
    ids = [set(re.findall(r'\bid="([^"]+)"', page)) for page in pages]
    assert ids[0] and not ids[0] & ids[1]
    for page, own in zip(pages, ids, strict=True):
        pointed_at = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
        assert page.startswith("<svg") and "a line" in page and pointed_at <= own


@pytest.mark.parametrize(
    ("name", "message"), [("a.jpg", "--plot .*a.jpg: .*png, .svg, .pdf"), ("x/a.png", "not a folder")]
)
def test_what_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match=message):
        check_plot(tmp_path / name)
