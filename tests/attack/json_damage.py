"""Edits of JSON documents: of each value by its type, of each object and list, and of the text itself."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from numpy.random import Generator

DEEP = 100_000
Path = tuple[str | int, ...]

NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 3, 0.5, -0.0, 1e308, -1e308, 1e-320, 255, 2**31, 2**63, 2**64, 10**20),
    *("NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "-" + "9" * 5000),  # as they stand in the text
]
STRINGS = [
    *("", " ", ".", "..", "/", "../" * 8 + "etc/passwd", "/etc/passwd", "/dev/zero", "graphs/../../outside", "a/./b"),
    *("a" * 300, "a" * 5000, "a/" * 3000, "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x00", "one\x00two", "two\nlines"),
    *(
        "\ud800",
        "\u202egnp",
        "²",
        "٣",
        "🙂" * 10,
        "%s%n",
        "{0}",
        "[bold]x[/bold]",
        "manifest.json",
        "nan",
        "null",
        "0",
        "-1",
    ),
]
OTHERS: list[Any] = [None, True, False, 0, 1, -1, 1.5, "", "x", [], {}, [[]], {"": None}]


class _Raw(str):
    """Text that goes into the document as it is."""


ENLARGED = "a thousand times"


def damaged_json(draw: Generator, content: bytes) -> tuple[bytes, str]:
    """The document with one to three edits, and what they are."""
    if draw.random() < 0.06:
        return _damaged_text(draw, content)
    document = json.loads(content)
    notes = []
    for _ in range(int(draw.choice([1, 1, 1, 2, 3]))):
        document, note = _edit(draw, document)
        notes.append(note)
        if ENLARGED in note:
            break  # a thousand times a thousand would take all the time there is
    raw: list[str] = []
    text = json.dumps(_mark(document, raw), indent=1)
    for index, part in enumerate(raw):
        text = text.replace(f'"@raw{index}@"', part)
    if draw.random() < 0.05:
        text, note = _duplicate_key(draw, text)
        notes.append(note)
    return text.encode("utf-8", "surrogatepass"), "; ".join(notes)


def places(document: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a document and where it stands, the document itself first."""
    yield path, document
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*path, index))


def _edit(draw: Generator, document: Any) -> tuple[Any, str]:
    # A manifest holds hundreds of sizes and few of everything else, so first the kind of place is drawn, then the place.
    kinds: dict[Path, list[tuple[Path, Any]]] = {}
    for path, value in places(document):
        kinds.setdefault(tuple("*" if isinstance(part, int) else part for part in path), []).append((path, value))
    same = list(kinds.values())[draw.integers(len(kinds))]
    path, value = same[draw.integers(len(same))]
    if len(same) > 1 and draw.random() < 0.1:
        new, how = same[draw.integers(len(same))][1], "what another one has"
    else:
        new, how = _other(draw, value)
    shown = repr(new)
    return _replaced(document, path, new), f"{'.'.join(map(str, path)) or 'all'}: {how} {shown[:60]}"


def _other(draw: Generator, value: Any) -> tuple[Any, str]:
    if draw.random() < 0.15:
        return _one(draw, OTHERS), "of another type"
    if isinstance(value, bool) or value is None:
        return (not value) if draw.random() < 0.5 else _one(draw, OTHERS), "changed"
    if isinstance(value, int | float):
        near: list[object] = [
            value + 1,
            value - 1,
            value * 2,
            -value,
            value / 2,
            value // 2,
            str(value),
            [value],
            float(value),
        ]
        number = _one(draw, [*near, *NUMBERS])
        return (_Raw(number) if isinstance(number, str) and number in NUMBERS else number), "number"
    if isinstance(value, str):
        near = [value + "x", value[:-1], value.upper(), value[::-1], f"./{value}", f"../{value}", f"{value}/", [value]]
        return _one(draw, [*near, *STRINGS]), "text"
    return _list(draw, value) if isinstance(value, list) else _object(draw, value)


def _list(draw: Generator, value: list[Any]) -> tuple[Any, str]:
    edits: list[Callable[[], tuple[Any, str]]] = [
        lambda: ([], "emptied"),
        lambda: (value[::-1], "reversed"),
        lambda: (value * 2, "doubled"),
        lambda: (value * 1000 if len(value) < 20 else value, ENLARGED),
        lambda: ([value], "nested"),
        lambda: ({str(i): each for i, each in enumerate(value)}, "as an object"),
        lambda: (_Raw("[" * DEEP + "]" * DEEP), "nested deeply"),
        lambda: ([*value, _one(draw, OTHERS)], "longer"),
    ]
    if value:
        index = int(draw.integers(len(value)))
        edits += [
            lambda: (value[:index] + value[index + 1 :], f"without {index}"),
            lambda: ([*value, value[index]], f"with {index} twice"),
            lambda: ([*value[:index], _one(draw, OTHERS), *value[index + 1 :]], f"another {index}"),
        ]
    return _one(draw, edits)()


def _object(draw: Generator, value: dict[str, Any]) -> tuple[Any, str]:
    edits: list[Callable[[], tuple[Any, str]]] = [
        lambda: ({}, "emptied"),
        lambda: (list(value.values()), "as a list"),
        lambda: ({**value, _one(draw, STRINGS): _one(draw, OTHERS)}, "with a key"),
        lambda: (_Raw('{"a":' * DEEP + "1" + "}" * DEEP), "nested deeply"),
    ]
    if value:
        keys = list(value)
        key, other = keys[draw.integers(len(keys))], keys[draw.integers(len(keys))]
        without = {name: each for name, each in value.items() if name != key}
        edits += [
            *[lambda: (without, f"without {key}")] * 4,
            lambda: (
                {**without, _one(draw, [key.upper(), f"{key} ", f"_{key}", *STRINGS]): value[key]},
                f"{key} renamed",
            ),
            lambda: ({**value, key: value[other], other: value[key]}, f"{key} and {other} exchanged"),
        ]
    return _one(draw, edits)()


def _damaged_text(draw: Generator, content: bytes) -> tuple[bytes, str]:
    cut = int(draw.integers(len(content)))
    edits: list[tuple[bytes, str]] = [
        (b"", "empty"),
        (b"null", "null"),
        (b"[]", "a list"),
        (b"0", "a number"),
        (b'"x"', "a text"),
        (b"[" * DEEP, "nested without end"),
        (b"[" * DEEP + b"]" * DEEP, "nested deeply"),
        (b"1" * 5000, "a number of 5,000 digits"),
        (content[:cut], f"cut at {cut}"),
        (content + content, "twice"),
        (content + b"x", "with an end"),
        (b"\xef\xbb\xbf" + content, "with a byte order mark"),
        (content.decode().encode("utf-16"), "UTF-16"),
        (content[:cut] + b"\x00" + content[cut:], f"NUL at {cut}"),
        (content[:cut] + b"\xff" + content[cut:], f"no UTF-8 at {cut}"),
        (content[:cut] + b"/* */" + content[cut:], f"a comment at {cut}"),
        (b" " * 10**6 + content, "a million blanks"),
    ]
    new, how = edits[draw.integers(len(edits))]
    return new, f"the text: {how}"


def _duplicate_key(draw: Generator, text: str) -> tuple[str, str]:
    starts = [index for index in range(len(text)) if text.startswith('": ', index)]
    if not starts:
        return text, "no key to double"
    end = starts[draw.integers(len(starts))]
    start = text.rfind('"', 0, end)
    key = text[start : end + 1]
    return f"{text[:start]}{key}: 7, {text[start:]}", f"{key} twice"


def _replaced(document: Any, path: Path, new: Any) -> Any:
    if not path:
        return new
    copy = document.copy()
    copy[path[0]] = _replaced(document[path[0]], path[1:], new)
    return copy


def _mark(document: Any, raw: list[str]) -> Any:
    """The document with a mark in the place of each raw text, which is added to `raw`."""
    if isinstance(document, _Raw):
        raw.append(str(document))
        return f"@raw{len(raw) - 1}@"
    if isinstance(document, dict):
        return {key: _mark(value, raw) for key, value in document.items()}
    if isinstance(document, list):
        return [_mark(value, raw) for value in document]
    return document


def _one(draw: Generator, values: list[Any]) -> Any:
    return values[draw.integers(len(values))]
