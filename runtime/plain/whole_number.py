"""Whole numbers in text: ASCII digits, as many as fit into 64 bits."""

from starflow.runtime.plain.limits import MOST_DIGITS


def whole_number(text: str) -> int | None:
    """The number that a text of digits is; None if it is anything else.

    Superscripts and the digits of other scripts are digits to Python as well, but no numbers here.
    """
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits.lstrip("0")) > MOST_DIGITS:
        return None
    return int(digits)
