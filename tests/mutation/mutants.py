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


@dataclass(frozen=True)
class Mutant:
    """One change of a module: the occurrence of an operator, at a line."""

    operator: str
    occurrence: int
    line: int

    def code(self, source: str) -> str | None:
        """The changed source; None where the operator changes nothing."""
        mutated: str | None = None
        with contextlib.suppress(AttributeError):  # an operator that does not know all syntax
            mutated = mutate_code(source, cosmic_ray.plugins.get_operator(self.operator)(), self.occurrence)
        return None if mutated == source else mutated

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
    silent = list(_silent_places(source))
    tree = get_ast(source)
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)
        if NOISE.search(name) or operator.arguments():
            continue
        positions = (place for node in ast_nodes(tree) for place in operator().mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            if not any(first <= start < last for first, last in silent):
                yield Mutant(name, occurrence, start[0])


def _silent_places(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where types and decorators of data classes stand, which say nothing about values."""
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.ClassDef):
            parts += [part for part in node.decorator_list if "dataclass" in ast.unparse(part)]
        for part in parts:
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)
