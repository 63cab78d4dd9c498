"""The C++ library, built once in a run."""

from pathlib import Path

import pytest

from tests.cpp_library import BuildSkippedError, build, install


@pytest.fixture(scope="session")
def cpp_folder() -> Path:
    """The folder of the built library and of `starflow-run`; tests are skipped where it cannot be built."""
    try:
        return build()
    except BuildSkippedError as skipped:
        pytest.skip(str(skipped))


@pytest.fixture(scope="session")
def cpp_prefix(cpp_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is installed, as programs of others find it."""
    folder = tmp_path_factory.mktemp("installed")
    install(cpp_folder, folder)
    return folder
