"""Griffe extension: API pages say of a field what its comment says, which stands behind it in the source."""

import ast
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes the comment behind a field of a class the field's docstring."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        if not isinstance(node, ast.AnnAssign) or attr.docstring or not (attr.parent and attr.parent.is_class):
            return
        _, mark, comment = attr.lines[-1].partition("  # ")
        if mark and not comment.startswith(("type:", "noqa", "fmt:")):
            attr.docstring = griffe.Docstring(comment, parent=attr)
