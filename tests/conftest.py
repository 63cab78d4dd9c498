"""What every test may rely on."""

import os

# Models of a test's size are not worth a second thread: threads that wait for each other took two thirds of the time. NumPy and
# PyTorch look when they are loaded, and processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.conformance.summary import pytest_runtest_logreport, pytest_terminal_summary  # noqa: F401 (hooks)
from tests.installed_wheel import build_wheel
from tests.made_once import MadeOnce

# Files that take longest come first: at the end, one process would run while the others have nothing left to do.
LONGEST = ("tests/attack/test_attack.py", "tests/training/runs/test_engine.py")

# A shared machine may stall for longer than Hypothesis's default of 200 ms; slowness is not what these tests are about.
hypothesis.settings.register_profile("starflow", deadline=None)
hypothesis.settings.load_profile("starflow")

# Started in the background by a shell, a process ignores Ctrl-C, and so would every process that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Load what tests share, but not where they are only handed out to other processes: PyTorch takes seconds to load."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        for plugin in ("tests.shared_bundles", "tests.simulated_device.fixtures"):
            config.pluginmanager.import_plugin(plugin)


def pytest_collection_finish() -> None:
    """Leave what is loaded out of garbage collection: tests collect often, and PyTorch alone holds a million objects."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and skip tests marked `gpu` where no NVIDIA driver is loaded."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    if Path("/dev/nvidiactl").exists():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU; none is visible here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes folders that all processes of the run share."""
    own = tmp_path_factory.getbasetemp()
    return MadeOnce(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def wheel(repository: Path, made_once: MadeOnce) -> Path:
    """The wheel of this repository."""
    (built,) = made_once("wheel", lambda folder: build_wheel(repository, folder)).glob("dist/*.whl")
    return built
