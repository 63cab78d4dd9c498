"""YAML as users write it, and as nobody should."""

import time
from pathlib import Path
from typing import Any

import pytest

from starflow.runtime.plain.errors import RecipeError
from starflow.training.yaml_text import read_override, read_yaml


def value(text: str) -> Any:
    return read_override(f"x={text}", "x=1", RecipeError)[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e3", 1000.0),  # YAML 1.1 calls these three a text, 8 and 90
        ("010", "010"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),  # and this one a date, which no field takes
        ("1_000", 1000),
        ("-3", -3),
        ("0x10", 16),
        ("0", 0),
        ("1.5", 1.5),
        ("5.", 5.0),
        (".5", 0.5),
        ("-1.5E-3", -0.0015),
        ("1e-4", 1e-4),
        ("yes", True),
        ("~", None),
        ("'1'", "1"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: 1}", {"a": 1}),
        ("", None),
        ("abc", "abc"),
    ],
)
def test_values(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected and type(found) is type(expected)


def bomb(merge: bool) -> str:
    """Nine aliases of nine aliases ...: 9^10 values in 600 bytes."""
    lines = ["a0: &a0 {x: 1}"] if merge else ["a0: &a0 [x, x]"]
    for level in range(1, 11):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]"))
    return "\n".join(lines)


BAD: dict[str, tuple[str, str]] = {
    "bomb": (bomb(merge=False), "its aliases stand for more than 100,000 values (line"),
    "bomb of merges": (bomb(merge=True), "its aliases stand for more than 100,000 values (line"),
    "itself": ("a: &a [*a]", "an alias stands for what it is in (line 1)"),
    "deep": ("[" * 10_000, "nested too deeply"),
    "deep mapping": ("{a: " * 5_000, "nested too deeply"),
    "number as key": ("a: 1\n5: 2", "the key 5 is not a text; put it in quotes (line 2)"),
    "truth as key": ("on: 1", "the key on is not a text"),
    "nothing as key": ("~: 1", "the key ~ is not a text"),
    "list as key": ("? [a]\n: 1", "the key a list or mapping is not a text"),
    "digits": ("a: 1" + "0" * 5000, "a number of 5001 digits"),
    "code": ("!!python/object/apply:os.system [id]", "could not determine a constructor for the tag"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "tab": ("\ta: 1", "found character '\\t' that cannot start any token"),
    "zero byte": ("a: \0", "special characters are not allowed"),
    "no time": ("a: !!timestamp x", "a value does not fit its tag (AttributeError"),
    "no truth": ("a: !!bool x", "a value does not fit its tag (KeyError"),
    "no number": ("a: !!int x", "invalid literal for int()"),
    "an empty number": ("a: !!int ''", "a value does not fit its tag (IndexError"),
    "no decimal number": ("a: !!float x", "could not convert string to float"),
    "no bytes": ("a: !!binary é", "failed to convert base64 data into ascii"),
    "no pairs": ("a: !!omap x", "expected a sequence"),
    "no mapping": ("<<: [a]", "expected a mapping for merging"),
    "undefined alias": ("a: *b", "found undefined alias"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_at_once(kind: str, tmp_path: Path) -> None:
    text, found = BAD[kind]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(RecipeError) as caught:
        read_yaml(path, "recipe", RecipeError)
    assert time.process_time() - start < 10
    message = str(caught.value)
    assert message.startswith(f"{path}: not YAML: ") and found in message and "\n" not in message


def test_a_bad_value_of_an_option_is_one_line() -> None:
    for text in ("[", "*a", "!!python/name:os.system", "[" * 5_000, "1" + "0" * 5_000, "{5: 1}", "!!timestamp x"):
        with pytest.raises(RecipeError, match="is not a YAML value") as caught:
            value(text)
        assert "\n" not in str(caught.value)


def test_aliases_that_people_write_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    expected = {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}
    assert read_yaml(path, "recipe", RecipeError) == expected


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a: é".encode("latin1"), "not YAML: 'utf-8' codec"),
        (b"a: " + b"x" * 200_000, "cannot read the recipe: has more than 131,072 bytes"),
    ],
)
def test_files_that_are_no_recipe(content: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=found):
        read_yaml(path, "recipe", RecipeError)
