"""Mutants of a module by the operators of Cosmic Ray, and what is left of them when noise is taken out."""

import ast
import contextlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

# Operators that change the type of a result rather than a number (every test dies of `x << y` on floats), or nothing at all.
NOISE = re.compile(
    r"ReplaceBinaryOperator_\w+_(LShift|RShift|BitOr|BitAnd|BitXor|Mod)$"
    r"|ReplaceBinaryOperator_(LShift|RShift|BitOr|BitAnd|BitXor|Mod)_"
    r"|ReplaceComparisonOperator_\w*(Is|IsNot)(_|$)"
    r"|ReplaceUnaryOperator_(\w+_Invert|Invert_\w+|USub_Not|UAdd_\w+)$"
)
# Names are equal or they are not; that one comes before the other in the alphabet says nothing.
ORDER = re.compile(r"ReplaceComparisonOperator_(Eq|NotEq)_(Lt|LtE|Gt|GtE)$")

Span = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Mutant:
    """One change of a module: the occurrence of an operator, at a line."""

    operator: str
    occurrence: int
    line: int

    def code(self, source: str) -> str | None:
        """The changed source; None where the operator changes nothing, or what it makes is not Python."""
        with contextlib.suppress(AttributeError, SyntaxError):  # an operator that does not know all syntax
            mutated = mutate_code(source, cosmic_ray.plugins.get_operator(self.operator)(), self.occurrence)
            if mutated != source:
                ast.parse(mutated)
                return mutated
        return None

    def diff(self, source: str) -> str:
        """The lines that differ."""
        lines = unified_diff(source.splitlines(), (self.code(source) or "").splitlines(), n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def draw_mutants(source: str, most: int, seed: int) -> list[Mutant]:
    """At most so many mutants, drawn at random, in the order of the lines."""
    found = list(_all_mutants(source))
    if len(found) > most:
        found = random.Random(seed).sample(found, most)
    return sorted(found, key=lambda mutant: (mutant.line, mutant.operator, mutant.occurrence))


def _all_mutants(source: str) -> Iterator[Mutant]:
    silent, names = list(_silent_places(source)), list(_comparisons_of_names(source))
    tree = get_ast(source)
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)
        if NOISE.search(name) or operator.arguments():
            continue
        left_alone = silent + names if ORDER.search(name) else silent
        positions = ((node, place) for node in ast_nodes(tree) for place in operator().mutation_positions(node))
        for occurrence, (node, (start, _)) in enumerate(positions):
            marker = node.parent.type == "parameters"  # the `*` before parameters without a place
            if not marker and not any(first <= start < last for first, last in left_alone):
                yield Mutant(name, occurrence, start[0])


def _silent_places(source: str) -> Iterator[Span]:
    """Types, decorators of data classes, and the `strict` of `zip`, an assertion: they say nothing about values."""
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.ClassDef):
            parts += [part for part in node.decorator_list if "dataclass" in ast.unparse(part)]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":
            parts += [keyword.value for keyword in node.keywords]
        yield from (_span(part) for part in parts if part is not None)


def _comparisons_of_names(source: str) -> Iterator[Span]:
    """Comparisons in which a string is written out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            written = (part for part in (node.left, *node.comparators) if isinstance(part, ast.Constant))
            if any(isinstance(part.value, str | bytes) for part in written):
                yield _span(node)


def _span(node: ast.expr | ast.stmt) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
