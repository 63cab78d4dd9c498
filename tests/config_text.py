"""Reads `config.pbtxt`, protobuf's text format, as far as Triton's configurations use it."""

import json
import re
from collections.abc import Iterator
from typing import Any

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


def parse_config(text: str) -> dict[str, list[Any]]:
    """The values of each field in order; messages are dicts of the same form."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    tokens = TOKEN.findall("\n".join(lines))
    return _message(iter([*tokens, "}"]))


def _message(tokens: Iterator[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    name = ""
    for token in tokens:
        if token == "}":
            return found
        if token == "[":
            found.setdefault(name, []).extend(_values(tokens))
        elif token == "{":
            found.setdefault(name, []).append(_message(tokens))
        elif token == ":":
            following = next(tokens)
            if following == "[":
                found.setdefault(name, []).extend(_values(tokens))
            else:
                found.setdefault(name, []).append(_message(tokens) if following == "{" else _scalar(following))
        else:
            name = token
    raise AssertionError("a brace is missing")


def _values(tokens: Iterator[str]) -> Iterator[Any]:
    for token in tokens:
        if token == "]":
            return
        if token != ",":
            yield _message(tokens) if token == "{" else _scalar(token)


def _scalar(token: str) -> Any:
    return json.loads(token) if re.fullmatch(r'".*"|true|false|-?\d+', token) else token
