"""The emoji example's conversion, on a made-up miniature of the packages."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

RUNNER, WAVE, KEYCAP = "1F3C3", "1F44B", "0023-FE0F-20E3"
TONE = "1F3FB"


@pytest.fixture(scope="module")
def example(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("emoji_fetch", repository / "examples" / "emoji" / "fetch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packages(example: ModuleType, tmp_path: Path) -> dict[str, Path]:
    """Three emoji, two with a skin tone, in two complete styles and a third one that has the keycap alone."""
    emoji, captions = [], []
    for code, category, label in (
        (RUNNER, "People & Body", "person running"),
        (WAVE, "People & Body", "waving hand"),
        (KEYCAP, "Symbols", "keycap: #"),
    ):
        entry: dict[str, Any] = {
            "unified": code,
            "image": f"{code.lower()}.png",
            "category": category,
            "subcategory": label,
        }
        caption: dict[str, Any] = {"hexcode": code, "label": label, "tags": ["one", "two"]}
        if category == "People & Body":
            toned = f"{code}-{TONE}"
            entry["skin_variations"] = {TONE: {"unified": toned, "image": f"{toned.lower()}.png"}}
            caption["skins"] = [{"hexcode": toned, "label": f"{label}: light skin tone"}]
        emoji.append(entry)
        captions.append(caption)
    folders = {name: tmp_path / str(index) for index, name in enumerate(example.CONTENTS)}
    for package, place in (*example.STYLES.values(), *example.MORE_STYLES.values()):
        (folders[package] / place).mkdir(parents=True)
    (folders[example.GOOGLE] / "emoji.json").write_text(json.dumps(emoji))
    (folders[example.CAPTIONS] / "en").mkdir(parents=True)
    (folders[example.CAPTIONS] / "en" / "data.json").write_text(json.dumps(captions))
    for style, red in (("noto", 250), ("twemoji", 100)):
        package, place = example.STYLES[style]
        for code in (RUNNER, f"{RUNNER}-{TONE}", WAVE, f"{WAVE}-{TONE}", KEYCAP):
            Image.new("RGBA", (64, 64), (red, 0, 0, 128)).save(folders[package] / place / f"{code.lower()}.png")
    left_half = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    left_half.paste((0, 0, 200, 255), (0, 0, 128, 256))
    package, place = example.STYLES["fluent"]
    left_half.save(folders[package] / place / "23-20e3.webp", lossless=True)  # another spelling of the same code
    return folders


def test_every_picture_gets_its_style_group_and_caption(example: ModuleType, packages: dict[str, Path]) -> None:
    arrays = example.convert(packages, example.STYLES)
    assert arrays["images"].shape == (11, 64, 64, 3) and arrays["images"].dtype == np.uint8
    assert arrays["style"].tolist() == [0] * 5 + [1] * 5 + [2]
    assert arrays["group_names"][arrays["group"]].tolist() == [*(["People & Body"] * 4 + ["Symbols"]) * 2, "Symbols"]
    assert arrays["subgroup_names"][arrays["subgroup"]][-1] == "keycap: #"
    assert arrays["captions"][[1, 4, 10]].tolist() == ["person running: light skin tone", "keycap: #", "keycap: #"]
    assert arrays["tags"][1] == "one, two"
    assert not any(array.dtype.hasobject for array in arrays.values())  # np.load works with allow_pickle=False


def test_transparency_turns_white(example: ModuleType, packages: dict[str, Path]) -> None:
    images = example.convert(packages, example.STYLES)["images"]
    assert np.abs(images[0].astype(int) - (252, 127, 127)).max() <= 1
    assert (images[10, :, :32] == (0, 0, 200)).all() and (images[10, :, 32:] == 255).all()


def test_further_styles_are_for_the_training_part_alone(example: ModuleType, packages: dict[str, Path]) -> None:
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="16" height="32" fill="#00c800"/></svg>'
    package, place = example.MORE_STYLES["flat"]
    for code in (RUNNER, WAVE, KEYCAP):
        (packages[package] / place / f"{code.lower()}.svg").write_text(drawing)
    three = example.convert(packages, example.STYLES)
    six = example.convert(packages, example.STYLES | example.MORE_STYLES)
    assert len(six["images"]) == 14 and six["style_names"][six["style"][-1]] == "flat"
    assert (six["images"][-1, :, :31] == (0, 200, 0)).all() and (six["images"][-1, :, 33:] == 255).all()
    again = example.of_first_styles(six, len(example.STYLES))
    assert all((again[name] == three[name]).all() for name in three)
    varied = example.by_varied_captions(six)
    assert any(text.endswith("flat style") for text in varied["captions"])
    assert not any("flat style" in text for text in (*varied["validation_captions"], *varied["test_captions"]))


def test_the_split_never_cuts_through_an_emoji(example: ModuleType, packages: dict[str, Path]) -> None:
    arrays = example.convert(packages, example.STYLES)
    sides = {"runner": (0, 1, 5, 6), "wave": (2, 3, 7, 8), "keycap": (4, 9, 10)}
    held_out = {name: set(arrays["held_out"][list(rows)].tolist()) for name, rows in sides.items()}
    assert all(len(side) == 1 for side in held_out.values())
    assert held_out["keycap"] == {True}  # every group has something held out
    assert held_out["runner"] != held_out["wave"]


@pytest.mark.parametrize(
    ("code", "same"),
    [
        ("1F3C3-1F3FE-200D-2640-FE0F-200D-27A1-FE0F", "1F3C3"),  # a woman with a skin tone running to the right
        ("1F468-200D-2695-FE0F", "1F9D1-1F3FF-200D-2695-FE0F"),  # health workers
        ("1F469-200D-2764-FE0F-200D-1F469", "1F491"),  # couples
        ("1F468-200D-1F467", "1F46A"),  # families
        ("1F63A", "1F431"),  # drawn alike
    ],
)
def test_variants_are_one_family(example: ModuleType, code: str, same: str) -> None:
    assert example.family(code) == example.family(same)


def test_what_only_looks_like_a_variant_stays_apart(example: ModuleType) -> None:
    codes = ("1F3FB", "1F3FC", "2640-FE0F", "2642-FE0F", "27A1-FE0F", "1F468", "1F466", "1F46A", "1F468-200D-1F9B0")
    assert len({example.family(code) for code in codes}) == len(codes)


def test_classes_are_groups_at_half_the_size(example: ModuleType, packages: dict[str, Path]) -> None:
    arrays = example.convert(packages, example.STYLES)
    arrays["images"][4, :2, :2] = [[[0] * 3, [4] * 3], [[8] * 3, [12] * 3]]  # the keycap, held out
    classes = example.by_class(arrays)
    assert classes["test_images"].shape[1:] == classes["images"].shape[1:] == (32, 32, 3)
    assert len(classes["images"]) + len(classes["test_images"]) == 11
    assert set(classes["labels"].tolist()) == {1} and set(classes["test_labels"].tolist()) == {1, 8}
    keycap = classes["test_images"][classes["test_labels"] == 8][0]
    assert keycap[0, 0].tolist() == [6, 6, 6]


def test_captions_name_the_style(example: ModuleType, packages: dict[str, Path]) -> None:
    texts = example.by_caption(example.convert(packages, example.STYLES))
    assert len(texts["images"]) + len(texts["test_images"]) == 11
    assert (
        texts["test_captions"][-1] == "keycap: #, fluent style"
        and texts["test_keywords"][-1] == "one, two, fluent style"
    )
    assert texts["test_images"][-1, 0, 0].tolist() == [0, 0, 200] and texts["test_groups"][-1] == 8
    for side in ("", "test_"):
        assert len({len(texts[side + name]) for name in ("images", "captions", "keywords", "groups", "subgroups")}) == 1


def test_errors_take_one_line(example: ModuleType, packages: dict[str, Path]) -> None:
    picture = packages[example.TWITTER] / "img" / "twitter" / "64" / "1f44b.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"^1f44b\.png of emoji-datasource-twitter@16\.0\.0 cannot be read: .*$"):
        example.convert(packages, example.STYLES)
    picture.unlink()
    with pytest.raises(SystemExit, match=r"^emoji-datasource-twitter@16\.0\.0 has no picture 1f44b\.png$"):
        example.convert(packages, example.STYLES)
    (packages[example.CAPTIONS] / "en" / "data.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"has no caption for 1f3c3 of"):
        example.convert(packages, example.STYLES)


def test_varied_captions_keep_subjects_apart(example: ModuleType, packages: dict[str, Path]) -> None:
    arrays = example.convert(packages, example.STYLES)
    # Of the packages' three subjects the keycap and one of the hands and runners are held out; a fourth family joins them.
    more = {name: np.concatenate([values, values[-1:]]) for name, values in arrays.items() if len(values) == 11}
    more["code"][-1], more["captions"][-1], more["group"][-1], more["held_out"][-1] = "1f4a1", "bulb", 1, False
    varied = example.by_varied_captions(arrays | more)
    parts = {prefix: set(varied[f"{prefix}captions"].tolist()) for prefix in ("", "validation_", "test_")}
    assert len(varied["images"]) == len(varied["captions"]) and len(varied["captions"]) % 3 == 0
    assert len(varied["validation_images"]) == len(parts["validation_"]) > 0
    assert not any("skin tone" in caption for caption in parts["validation_"] | parts["test_"])
    names = {text.split(",")[0].split(":")[0] for text in varied["captions"][::3]}
    held_out = {text.split(",")[0].split(":")[0] for text in parts["validation_"] | parts["test_"]}
    assert names and names.isdisjoint(held_out)
    (name, words, longer) = varied["captions"][:3].tolist()
    subject, _, style = name.rpartition(", ")
    assert set(words.split(", ")[:-1]) <= {"one", "two"} and subject in longer
    assert words.endswith(style) and longer.endswith(style)
    again = example.by_varied_captions(arrays | more)
    assert all((varied[name] == again[name]).all() for name in varied)
