"""Edits of YAML documents: those of JSON, which is YAML as well, and what only YAML has."""

import json

import yaml
from numpy.random import Generator

from tests.attack.json_damage import damaged_json

BILLION = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)
)
DEEP = 20_000
VALUES = (
    *(
        ".nan",
        ".inf",
        "-.inf",
        "1:30",
        "0o17",
        "0x1F",
        "1_000",
        "2024-01-01",
        "2024-01-01T00:00:00Z",
        "no",
        "~",
        "=",
        "<<",
    ),
    *(
        "!!python/object/apply:os.system ['true']",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!timestamp x",
        "!unknown x",
        "!!int x",
    ),
    *(
        "*nothing",
        "&a [*a]",
        "|\n  text",
        "'open",
        "{",
        "[",
        "? x",
        "- x",
        "@x",
        "%x",
        "\tx",
        "\x07",
        "1" * 5000,
        "1e5",
        "1.0e+400",
    ),
)


def damaged_yaml(draw: Generator, content: bytes) -> tuple[bytes, str]:
    """The document with an edit, and what it is."""
    lot = draw.random()
    if lot < 0.6:
        return damaged_json(draw, json.dumps(yaml.safe_load(content)).encode())
    text = content.decode()
    lines = text.splitlines()
    index = int(draw.integers(len(lines)))
    if lot < 0.9:
        key, colon, _ = lines[index].partition(":")
        value = VALUES[draw.integers(len(VALUES))]
        lines[index] = f"{key}{colon} {value}"
        return "\n".join(lines).encode("utf-8", "surrogatepass"), f"{key.strip()}: {value[:40]!r}"
    others: list[tuple[str, str]] = [
        ("a line twice", "\n".join([*lines[: index + 1], *lines[index:]])),
        ("a line missing", "\n".join([*lines[:index], *lines[index + 1 :]])),
        ("a tab", text.replace("  ", "\t", 1)),
        ("two documents", f"{text}\n---\n{text}"),
        ("a directive", f"%YAML 9.9\n---\n{text}"),
        ("a billion names", BILLION + text),
        ("nested deeply", "[" * DEEP),
        ("nested by indentation", "".join(f"{' ' * i}a:\n" for i in range(2000))),
        ("a merge", f"x: &x {{a: 1}}\n<<: *x\n{text}"),
        ("a list as a key", f"? [a, b]\n: 1\n{text}"),
        ("empty", ""),
        ("a comment", "# nothing"),
    ]
    note, changed = others[draw.integers(len(others))]
    return changed.encode(), note
