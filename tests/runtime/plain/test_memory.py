"""The memory that is left, and what is refused for want of it."""

from pathlib import Path

import pytest

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.memory import available_memory, check_images, check_memory, container_memory


def test_a_container_limits_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\nfile 200\ninactive_file 150\nactive_file 50\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert container_memory(tmp_path) == 1000 - 700 + 150
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory(tmp_path) is None
    assert container_memory(tmp_path / "elsewhere") is None


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    available = available_memory()
    assert available is not None
    check_memory(available // 2, "it", "take less")
    with pytest.raises(
        UsageError, match=r"^it takes 1048576\.00 GiB of memory, but only .* GiB are available; take less$"
    ):
        check_memory(1 << 50, "it", "take less")


def test_images_are_planned_with_their_conditions() -> None:
    check_images(1000, 64, 100)
    for values, condition in ((1 << 20, 0), (64, 1 << 22)):
        with pytest.raises(UsageError, match="sampling 100,000,000 images at once takes .* sample fewer at a time"):
            check_images(100_000_000, values, condition)
