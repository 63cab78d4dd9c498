"""Recipes of flows, for tests."""

from collections.abc import Sequence
from pathlib import Path

from starflow.training.recipe import Recipe, load_recipe


def load_flow_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, Recipe)
    return recipe
