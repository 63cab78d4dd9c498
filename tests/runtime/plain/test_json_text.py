"""JSON from outside: values, or one line that says what is wrong."""

from pathlib import Path

import pytest

from starflow.runtime.plain.json_text import parse_json, read_json
from starflow.runtime.plain.limits import MOST_JSON_BYTES
from starflow.runtime.plain.regular_file import NotRegularError


def test_values_are_those_of_the_standard() -> None:
    text = '{"a": [1, -2.5e3, true, false, null, "\\u00e9\\n"], "b": {}, "c": 9223372036854775807}'
    expected = {"a": [1, -2500.0, True, False, None, "é\n"], "b": {}, "c": 2**63 - 1}
    assert parse_json(text) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1" + "0" * 5000, "a number of 5001 digits"),
        ("-" + "1" * 20, "a number of 21 digits"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("[NaN]", "it holds NaN"),
        ("[-Infinity]", "it holds -Infinity"),
        ("1e999", "it holds 1e999"),
        ("", "line 1 column 1"),
        ("{'a': 1}", "line 1 column 2"),
    ],
)
def test_what_is_no_json(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=found) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"é": 1}', encoding="utf-8-sig")  # with the byte order mark that some editors write
    assert read_json(path) == {"é": 1}
    path.write_text("{}", encoding="utf-16")
    with pytest.raises(UnicodeDecodeError):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(MOST_JSON_BYTES + 1)
    with pytest.raises(NotRegularError, match="more than 67,108,864 bytes"):
        read_json(path)
