"""Recipes: what is read, and one line about what is wrong."""

from pathlib import Path

import pytest

from starflow.runtime.plain.errors import RecipeError
from starflow.training.recipe import changed_field
from tests.training.recipes import load_flow_recipe

DIGITS8 = """
model: {family: tarflow, in_channels: 1, img_size: 8, patch_size: 2, channels: 16, head_dim: 8,
        num_blocks: 2, layers_per_block: 1, num_classes: 10}
data: {kind: digits8}
training: {steps: 10, batch_size: 16, learning_rate: 1e-3}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(DIGITS8)
    return path


def test_reads_a_recipe(recipe_file: Path) -> None:
    recipe = load_flow_recipe(recipe_file)
    assert recipe.model.family == "tarflow"
    assert recipe.training.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert recipe.training.label_drop == 0.1


def test_overrides_replace_values(recipe_file: Path) -> None:
    recipe = load_flow_recipe(recipe_file, ["training.steps=7", "training.betas=[0.5, 0.6]", "data.holdout=0.2"])
    assert recipe.training.steps == 7
    assert recipe.training.betas == (0.5, 0.6)
    assert recipe.data.holdout == 0.2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learning_rat=1", r"unknown field training\.learning_rat; did you mean learning_rate\?"),
        ("model.chanels=1", r"unknown field model\..*chanels; did you mean channels\?"),
        ("dat.kind=npz", r"unknown field dat; did you mean data\?"),
        ("training.batch_size=many", r"training\.batch_size: found 'many', expected a whole number"),
        ("training.batch_size=0", r"training\.batch_size: found 0, expected more than 0"),
        ("training.epochs=3", r"training.*either steps or epochs"),
        ("training.steps=null", r"training.*either steps or epochs"),
        ("training.accumulate=3", r"training.*batch_size 16 is not a multiple of accumulate 3"),
        ("data.kind=video", r"data.*'video'"),
        ("data.path=x", r"unknown field data\."),
        ("training.precision=int8", r"training\.precision.*'fp32'"),
        ("steps=3", r"--set steps=3: expected section\.field=value"),
        ("training.steps", r"--set training\.steps: expected"),
        ("training.steps=[", r"--set training\.steps=\["),
    ],
)
def test_mistakes_are_named_in_one_line(recipe_file: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        load_flow_recipe(recipe_file, [override])
    assert "\n" not in str(caught.value)
    if not str(caught.value).startswith("--set"):
        assert str(recipe_file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("- a\n- b", "found list"), ("model: [", "not YAML"), ("model: {}\n", "model"), ("", "found NoneType")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=expected) as caught:
        load_flow_recipe(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: cannot read the recipe: No such file"):
        load_flow_recipe(tmp_path / "absent.yaml")


def test_captions_and_encoder_belong_together(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(DIGITS8.replace("{kind: digits8}", "{kind: folder, path: x, captions: y.csv}"))
    with pytest.raises(RecipeError, match="captions and encoder belong together"):
        load_flow_recipe(path)


def test_a_learned_denoiser_is_not_trained(tmp_path: Path) -> None:
    model = (
        "family: starflow, in_channels: 1, img_size: 8, channels: 16, head_dim: 16, num_blocks: 2, layers_per_block: 1"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{{model}, rope: true}}\ndata: {{kind: digits8}}\ntraining: {{steps: 1}}\n")
    load_flow_recipe(path)
    with pytest.raises(
        RecipeError, match=r"model\.learnable_self_denoiser: found true; a learned denoiser can be imported, not"
    ) as caught:
        load_flow_recipe(path, ["model.learnable_self_denoiser=true"])
    assert "\n" not in str(caught.value)


def test_changed_field_names_what_may_not_change(recipe_file: Path) -> None:
    def dump(*overrides: str) -> dict[str, dict[str, object]]:
        return load_flow_recipe(recipe_file, overrides).model_dump(mode="json")

    assert changed_field(dump(), dump("training.steps=99", "training.log_every=1", "training.threads=1")) is None
    assert changed_field(dump(), dump("training.seed=1")) == "training.seed (was 0, is 1)"
    assert changed_field(dump(), dump("model.channels=32")) == "model.channels (was 16, is 32)"
