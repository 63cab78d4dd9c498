"""Lines of text files: the same as if the file were read whole, in bounded memory."""

import resource
import time
from pathlib import Path

import pytest

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_captions
from starflow.runtime.plain.limits import MOST_LINES
from starflow.runtime.plain.regular_file import NotRegularError
from starflow.runtime.plain.text_lines import text_lines


@pytest.mark.parametrize(
    "text", ["", "a", "a\nb\n", "a\r\nb\rc\n\nd", "\ufeffé\n\ufeff🙂", "a\u2028b\x85c", "x" * 100 + "\r\n" + "x" * 100]
)
def test_lines_are_those_of_the_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    whole = text.removeprefix("\ufeff")
    assert "".join(text_lines(tmp_path / "a.txt", 100)) == whole
    captions = [line.strip() for line in whole.splitlines() if line.strip()]
    if captions:
        assert load_captions(tmp_path / "a.txt") == captions


def test_a_line_too_long(tmp_path: Path) -> None:
    for end in ("", "\n", "\r\n", "\nb"):
        (tmp_path / "a.txt").write_bytes(f"b\n{'x' * 101}{end}".encode())
        with pytest.raises(NotRegularError, match="has more than 100 characters in line 2"):
            list(text_lines(tmp_path / "a.txt", 100))


@pytest.mark.parametrize(
    ("size", "found"), [(1 << 30, "more than 65,536 characters in line 1"), (1 << 43, "more than 1,073,741,824 bytes")]
)
def test_nothing_but_zeros(size: int, found: str, tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(size)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=found):
        load_captions(tmp_path / "a.txt")
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_nothing_but_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n" * (MOST_LINES + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="has more than 10,000,000 lines"):
        load_captions(tmp_path / "a.txt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB
