"""Every public declaration of the C++ library has a comment, and every array in it a shape."""

import re
from collections.abc import Iterator

import pytest

from tests.cpp_library import REPOSITORY

INCLUDE = REPOSITORY / "runtime/cpp/include/starflow"
ARRAY = re.compile(r"std::vector<(float|std::u?int\d+_t)>|\b(float|u?int\d+_t)\s?\*")
# What says all there is to say: moving and destroying, and what opens or closes a scope.
PLAIN = re.compile(
    r"^(namespace|extern|public:|private:|explicit|#|\}|typedef|STARFLOW_C_API$)|operator=|~|&&|\bErrorKind kind_;|struct Open;"
)


def declarations(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, code and comments of each public declaration."""
    comment, code, line, private = "", "", 0, False
    for number, row in enumerate(text.splitlines(), 1):
        stripped = row.strip()
        private = (private or stripped == "private:") and stripped != "};"
        if re.match(r"///|/\*|\*", stripped) and not code:
            comment += stripped
            continue
        own = re.search(r"///<.*|/\*.*\*/", stripped)
        stripped = stripped.replace(own.group(), "").strip() if own else stripped
        comment += own.group() if own else ""
        if not stripped or private or PLAIN.search(stripped):
            if not code:
                comment = ""
            continue
        line = line if code else number
        code += " " + stripped
        if re.search(r"[;{}]$|\\$", stripped) or (own and stripped.endswith(",")):
            yield line, code.strip(), comment
            comment, code = "", ""


@pytest.mark.parametrize("name", ["starflow.h", "starflow.hpp"])
def test_every_declaration_says_what_it_is(name: str) -> None:
    found = list(declarations((INCLUDE / name).read_text()))
    assert len(found) > 40
    assert [(line, code) for line, code, comment in found if not comment] == [], name
    arrays = [(line, code) for line, code, comment in found if ARRAY.search(code) and "[" not in comment + code]
    assert arrays == []
