"""Griffe extension: API pages say of a field what its comment says, which stands behind or above it in the source."""

import ast
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes the comment of a field of a class its docstring."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        if (
            not isinstance(node, ast.Assign | ast.AnnAssign)
            or attr.docstring
            or not (attr.parent and attr.parent.is_class)
        ):
            return
        source = attr.lines_collection[attr.filepath]
        _, mark, comment = source[node.end_lineno - 1].partition("  # ")
        if not mark:
            first = node.lineno - 1
            while source[first - 1].lstrip().startswith("# "):
                first -= 1
            comment = " ".join(line.strip("# ") for line in source[first : node.lineno - 1])
        if comment and not comment.startswith(("type:", "noqa", "fmt:")):
            attr.docstring = griffe.Docstring(comment, parent=attr)
