"""Progress and cancelling, as TensorRT's nested phases report it."""

import pytest

from starflow.export.tensorrt.build_monitor import PARTS, BuildMonitor
from starflow.runtime.backends.tensorrt.flavour import load_flavour

pytestmark = pytest.mark.usefixtures("rtx")


def monitored() -> tuple[BuildMonitor, list[tuple[int, str | None]]]:
    reports: list[tuple[int, str | None]] = []

    def report(done: int, total: int, doing: str | None = None) -> None:
        assert total == PARTS
        reports.append((done, doing))

    return BuildMonitor(load_flavour("tensorrt-rtx"), report), reports


def test_a_phase_inside_a_step_counts_as_its_share() -> None:
    monitor, reports = monitored()
    trt = monitor.interface
    trt.phase_start("build", None, 2)
    trt.step_complete("build", 0)
    trt.phase_start("tactics", "build", 4)
    for index in range(4):
        trt.step_complete("tactics", index)
    trt.phase_finish("tactics")
    trt.step_complete("build", 1)
    assert [done for done, _ in reports] == [50, 62, 75, 87, 100]
    assert [doing for _, doing in reports] == ["build", *["tactics"] * 4]


def test_progress_never_goes_back() -> None:
    monitor, reports = monitored()
    trt = monitor.interface
    trt.phase_start("build", None, 2)
    for _ in range(2):  # TensorRT runs some phases once for every profile
        trt.phase_start("tactics", "build", 2)
        trt.step_complete("tactics", 0)
        trt.step_complete("tactics", 1)
        trt.phase_finish("tactics")
    assert [done for done, _ in reports] == [25, 50]


def test_cancelling_ends_the_next_step() -> None:
    monitor, _ = monitored()
    trt = monitor.interface
    trt.phase_start("build", None, 2)
    assert trt.step_complete("build", 0)
    monitor.cancel()
    assert not trt.step_complete("build", 1)
