"""A proposed recipe fits its folder: it loads, and trains, whatever sizes and modes the images have."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import DataError
from starflow.training.data.dataset import load_dataset
from starflow.training.proposal.image_survey import survey_images
from starflow.training.proposal.pace import measure_pace
from starflow.training.proposal.proposal import ENOUGH_STEPS, Encoder, Pace, Size, Wishes, propose
from starflow.training.proposal.recipe_text import recipe_text, recipe_values
from starflow.training.trainer import Trainer
from tests.training.recipes import load_flow_recipe

MODES = ("RGB", "RGBA", "P", "L", "CMYK")


def make_images(folder: Path, count: int, mode: str | None = None) -> Path:
    """Random images of many sizes, and of one mode or of all."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for index in range(count):
        height, width = (int(side) for side in rng.integers(25, 60, 2))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        chosen = mode or MODES[index % len(MODES)]
        image.convert(chosen).save(folder / f"{index}.{'jpg' if chosen == 'CMYK' else 'png'}")
    return folder


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Three classes, one of them small."""
    for name, count in (("cat", 30), ("dog", 25), ("owl", 9)):
        make_images(tmp_path / "images" / name, count)
    return tmp_path / "images"


def pace_of(seconds: float) -> Any:
    def measure(size: Size, values: Mapping[str, Any], limit: float) -> Pace:
        return Pace(seconds, 1.0, 2, "bf16")

    return measure


def test_a_survey_counts_what_is_there(classes: Path) -> None:
    survey = survey_images(classes)
    sides = sorted(min(Image.open(file).size) for file in classes.rglob("*.*"))
    assert survey.classes == {"cat": 30, "dog": 25, "owl": 9} and "3 classes of 9 to 30" in survey.described()
    assert sorted(survey.sides) == sides
    assert not survey.grey
    assert survey.captions is None


def test_a_proposed_recipe_trains(classes: Path, tmp_path: Path) -> None:
    _, sections = propose(survey_images(classes), Wishes(minutes=1, size="XS", pixels=8), pace_of(0.03))
    (tmp_path / "recipe.yaml").write_text(recipe_text("A recipe.", sections))
    recipe = load_flow_recipe(tmp_path / "recipe.yaml")
    assert recipe.model_dump(include=set(sections))["model"]["txt_dim"] == 4
    trainer = Trainer(recipe, load_dataset(recipe.data, tmp_path), tmp_path / "run")
    assert np.isfinite(float(trainer.train_step()["loss"]))


def test_time_decides_steps_and_size(classes: Path) -> None:
    survey = survey_images(classes)
    size, sections = propose(survey, Wishes(minutes=10), pace_of(0.1))
    assert size == "S"
    training = recipe_values(sections)["training"]
    assert training["steps"] == pytest.approx((0.92 * 600 - 12) / 0.1, abs=10)
    assert -(-training["steps"] // training["sample_every"]) == 12  # the run's last step among them
    size, _ = propose(survey, Wishes(minutes=1), pace_of(0.1))
    assert size == "XS"
    size, sections = propose(survey, Wishes(minutes=1, size="M"), pace_of(0.1))
    assert size == "M"
    assert recipe_values(sections)["training"]["steps"] < ENOUGH_STEPS


def test_a_larger_model_that_is_too_slow_is_left_at_its_first_step(classes: Path) -> None:
    asked: list[tuple[Size, float]] = []

    def measure(size: Size, values: Mapping[str, Any], limit: float) -> Pace | None:
        asked.append((size, limit))
        return None if size == "S" else Pace(0.5, 1.0, 1, "fp32")

    size, sections = propose(survey_images(classes), Wishes(minutes=10), measure)
    assert size == "XS"
    assert recipe_values(sections)["training"]["threads"] == 1
    assert asked == [("S", pytest.approx(0.92 * 600 / ENOUGH_STEPS)), ("XS", float("inf"))]
    _, sections = propose(survey_images(classes), Wishes(minutes=1, size="XS", pixels=8), pace_of(0.03))
    told: list[str | None] = []

    def report(done: int, total: int, doing: str | None = None) -> None:
        told.append(doing)

    assert measure_pace(recipe_values(sections), limit=1e-9, report=report) is None
    assert told == ["first step"]


def test_grey_images_without_classes(tmp_path: Path) -> None:
    survey = survey_images(make_images(tmp_path / "scans", 24, mode="L"))
    _, sections = propose(survey, Wishes(minutes=1), pace_of(0.03))
    values = recipe_values(sections)
    assert values["data"]["mode"] == "L"
    assert values["model"]["txt_size"] == 0
    assert not values["training"]["flip"]
    assert "label_drop" not in values["training"]


def test_captions_need_an_encoder(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 24)
    lines = [json.dumps({"file": file.name, "caption": f"picture {file.stem}"}) for file in folder.glob("*.*")]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    survey = survey_images(folder)
    with pytest.raises(DataError, match="--encoder"):
        propose(survey, Wishes(minutes=1), pace_of(0.03))
    _, sections = propose(survey, Wishes(minutes=1, encoder=Encoder("encoder", 32)), pace_of(0.03))
    values = recipe_values(sections)
    assert values["data"]["captions"] == str(folder / "captions.jsonl")
    assert (values["model"]["txt_size"], values["model"]["txt_dim"]) == (values["data"]["tokens"], 32)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_captions_of_a_hugging_face_folder(tmp_path: Path, name: str) -> None:
    folder = make_images(tmp_path / "images", 24)
    files = sorted(folder.glob("*.*"))
    lines = [json.dumps({"file_name": file.name, "text": f"a picture {file.stem}"}) for file in files]
    if name.endswith(".csv"):
        lines = ["file_name,text", *(f"{file.name},a picture {file.stem}" for file in files)]
    (folder / name).write_text("\n".join(lines))
    survey = survey_images(folder)
    assert (survey.captions, survey.longest_caption, survey.count) == (folder / name, 3, 24)
    _, sections = propose(survey, Wishes(minutes=1, encoder=Encoder("encoder", 32)), pace_of(0.03))
    assert recipe_values(sections)["data"]["captions"] == str(folder / name)


def test_metadata_without_texts_are_no_captions(classes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "others"
    shutil.copytree(classes, folder)
    (folder / "metadata.csv").write_text("file_name,label\na.png,3\n")
    survey = survey_images(folder)
    assert survey.captions is None and len(survey.classes) > 1


@pytest.mark.parametrize("other", ["captions.jsonl", "captions.csv", "metadata.jsonl"])
def test_two_files_of_captions(tmp_path: Path, other: str) -> None:
    folder = make_images(tmp_path / "images", 1)
    for name in ("metadata.csv", other):
        (folder / name).write_text(
            "file_name,text\n" if name.endswith(".csv") else '{"file_name": "a.png", "text": "a"}\n'
        )
    with pytest.raises(DataError, match=f"images: found {other} and metadata.csv, expected one file") as caught:
        survey_images(folder)
    assert "\n" not in str(caught.value)


def test_the_command_measures_and_writes(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "mine.yaml"
    assert (
        main(["init", str(classes), "-o", str(recipe), "--minutes", "0.2", "--size", "XS", "--pixels", "8", "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    loaded = load_flow_recipe(recipe)
    assert told["training"]["steps"] == loaded.training.steps
    assert loaded.training.threads == told["training"]["threads"]
    before = recipe.read_text()
    assert main(["init", str(classes), "-o", str(recipe)]) == 2
    assert "--force" in capsys.readouterr().err
    assert recipe.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "does not exist"),
        (["{tmp}", "--minutes", "0"], "--minutes"),
        (["{tmp}"], "holds no images"),
        (["{tmp}", "--pixels", "32", "--autoencoder", "x"], "--pixels"),
    ],
)
def test_wrong_requests(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["init", *given, "-o", str(tmp_path / "recipe.yaml")]) in (1, 2)
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "recipe.yaml").exists()
