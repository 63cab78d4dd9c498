"""Libraries that a library needs, compared with what the compiler was told."""

import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from starflow.runtime.backends.onnxruntime.shared_libraries import missing_libraries, needed_libraries
from tests.fake_driver import make_library


def test_the_libraries_of_a_library_are_those_it_was_linked_with(tmp_path: Path) -> None:
    needed = make_library(tmp_path / "needed", "libneeded.so.7", "int one(void) { return 1; }")
    other = make_library(tmp_path / "other", "libother.so.1", "int two(void) { return 2; }")
    source = "int one(void); int two(void); int three(void) { return one() + two(); }"
    user = make_library(tmp_path / "user", "libuser.so.3", source, needed, other)
    names = needed_libraries(user)
    assert names[:2] == ["libneeded.so.7", "libother.so.1"]
    assert missing_libraries(names) == ["libneeded.so.7", "libother.so.1"]  # neither lies on the loader's path
    code = f"import ctypes; ctypes.CDLL({str(needed)!r})\n"
    code += f"from {missing_libraries.__module__} import missing_libraries\nprint(missing_libraries({names!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['libother.so.1']\n"  # what is loaded is found by its name


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_readelf_says_the_same_of_onnx_runtime() -> None:
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    dynamic = subprocess.run(["readelf", "--dynamic", library], capture_output=True, text=True, check=True).stdout
    expected = [line.partition("[")[2].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert expected and needed_libraries(library) == expected


def test_other_files_need_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no library at all")
    assert needed_libraries(tmp_path / "text") == []
