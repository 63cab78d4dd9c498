import re
from importlib.metadata import metadata

from starflow.runtime.plain.install_hint import install_hint


def test_hint_names_ways_that_need_no_index() -> None:
    hint = install_hint("text")
    commands = re.findall(r"pip install '([^']+)'", hint)
    assert commands == [".[text]", "starflow_compiler-<version>-py3-none-any.whl[text]"]
    assert "text" in metadata("starflow-compiler").get_all("Provides-Extra", [])
