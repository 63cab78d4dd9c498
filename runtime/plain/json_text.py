"""Reads JSON: the one place where text from outside becomes values."""

import json
import math
from pathlib import Path
from typing import Any

from starflow.runtime.plain.limits import MOST_DIGITS, MOST_JSON_BYTES
from starflow.runtime.plain.regular_file import read_text


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, holds NaN or a number beyond 64 bits, or is nested too deeply; one line that says where.
    """
    try:
        return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read, see `read_text`.
        ValueError: see `parse_json`; or it is not UTF-8.
    """
    return parse_json(read_text(path, MOST_JSON_BYTES))


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"it holds {digits:.40}, which no number type holds")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not have")
