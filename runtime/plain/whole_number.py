"""Whole numbers in text: ASCII digits, whose number fits into 64 bits with a sign."""

from starflow.runtime.plain.limits import MOST_DIGITS


def whole_number(text: str) -> int | None:
    """The number that a text of digits is; None if it is anything else.

    Superscripts and the digits of other scripts are digits to Python as well, but no numbers here.
    """
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits.lstrip("0")) > MOST_DIGITS:
        return None
    number = int(digits)
    return number if number < 1 << 63 else None
