"""The report: one file, the same for the same result, and what failed stands in it."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from starflow.export.verification.report import write_report
from starflow.export.verification.routes import NotRun, choose_variants, default_reference, find_routes
from starflow.export.verification.tolerances import tolerances
from starflow.export.verification.verify import Verification, verify
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.traces.case import draw_case
from tests.export.verification.faults import faulty, nan_at

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps what the page refers to and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._keep(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._keep(attrs)

    def _keep(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name.rpartition(":")[2] in ("src", "href"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> Verification:
    """A good route, one that gives NaN, and one that was not run."""
    (good, *_), _ = find_routes(bundle, ["onnxruntime"], choose_variants(bundle, ["portable-fp16"]))
    routes = [good, faulty(good, nan_at(block=1, position=6, image=1), "a <faulty> route")]
    not_run = [NotRun("tensorrt portable-fp16", "no GPU: none is visible")]
    return verify(bundle, default_reference(bundle), routes, draw_case(bundle), tolerances(), not_run=not_run)


@pytest.fixture(scope="module")
def report(bundle: Bundle, result: Verification, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, bundle, result, tolerances(["fp16.sample=0.03"]))
    return path.read_text(encoding="utf-8")


def test_it_needs_nothing_else(report: str) -> None:
    page = Page(report)
    assert page.links and all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not re.search(r"<(script|link|iframe)\b|@import|url\((?!#)", report)
    references = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", report))
    assert references <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)), "the plots share one page"


def test_it_says_what_failed_and_what_was_not_run(report: str) -> None:
    text = Page(report).text
    assert text.index("FAILED") < text.index("What was compared")
    assert "it gave NaN or infinity in flow block 1 at position 6 (token 5, image 1)" in text
    assert "a <faulty> route" in text
    assert "no GPU: none is visible" in text
    assert "set by hand" in text


def test_every_plot_is_a_drawing_with_every_route(report: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", report, re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        words = " ".join(ElementTree.fromstring(drawing).itertext())
        assert "onnxruntime portable-fp16" in words and "flow block 1" in words
    assert "not finite" in drawings[1]


def test_the_same_result_gives_the_same_bytes(
    tmp_path: Path, bundle: Bundle, result: Verification, report: str
) -> None:
    write_report(tmp_path / "again.html", bundle, result, tolerances(["fp16.sample=0.03"]))
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == report
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]
