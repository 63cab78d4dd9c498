"""What every test may rely on."""

from pathlib import Path

import hypothesis
import pytest

# A shared machine may stall for longer than Hypothesis's default of 200 ms; slowness is not what these tests are about.
hypothesis.settings.register_profile("starflow", deadline=None)
hypothesis.settings.load_profile("starflow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where no NVIDIA driver is loaded."""
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
