"""The C++ library, built once in a run."""

from pathlib import Path

import pytest

from tests.cpp_library import BuildSkippedError, build


@pytest.fixture(scope="session")
def cpp_folder() -> Path:
    """The folder of the built library and of `starflow-run`; tests are skipped where it cannot be built."""
    try:
        return build()
    except BuildSkippedError as skipped:
        pytest.skip(str(skipped))
