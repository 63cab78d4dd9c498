"""Fetch 1,911 emoji in three styles, six for emoji-varied.npz (npm packages), and write out/emoji/emoji{64,32,-text,-varied}.npz.

Example: python examples/emoji/fetch.py
"""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

GOOGLE = "emoji-datasource-google@16.0.0"
TWITTER = "emoji-datasource-twitter@16.0.0"
FLUENT = "@lobehub/fluent-emoji-3d@1.1.0"
BLOB = "emoji-datasource-google@3.0.0"
FLAT = "@lobehub/fluent-emoji-flat@1.1.0"
MODERN = "@lobehub/fluent-emoji-modern@1.0.0"
CAPTIONS = "emojibase-data@17.0.0"
# What is unpacked of each; the packages are much larger.
CONTENTS = {
    GOOGLE: ("emoji.json", "img/google/64/"),
    TWITTER: ("img/twitter/64/",),
    FLUENT: ("assets/",),
    BLOB: ("img/google/64/",),
    FLAT: ("assets/",),
    MODERN: ("assets/",),
    CAPTIONS: ("en/data.json",),
}
STYLES = {"noto": (GOOGLE, "img/google/64"), "twemoji": (TWITTER, "img/twitter/64"), "fluent": (FLUENT, "assets")}
COMPLETE = ("noto", "twemoji")  # styles that have all emoji; fluent lacks about 400
# Only to train on, in emoji-varied.npz: the blobs that Noto Emoji was until 2017, and Fluent Emoji drawn flat and with gradients.
MORE_STYLES = {"blob": (BLOB, "img/google/64"), "flat": (FLAT, "assets"), "modern": (MODERN, "assets")}
GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Component",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
SUBGROUPS = 99
IMAGES = 10_944
SIZE = 64
HELD_OUT = 0.1  # part of the families of every group
VALIDATION = 1 / 16  # part of the other families, in emoji-varied.npz
SPLIT_SEED = 0  # fixed: everyone evaluates on the same emoji
DESTINATION = Path("out/emoji")

ADULT, CHILD, ELDER, FAMILY = "1f9d1", "1f9d2", "1f9d3", "1f46a"
HANDS, HEART = "1f91d", "2764"
TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
# Woman, man and joiner signs, "faces right" and skin tones change details of a picture, not its subject.
DETAILS = {"200d", "fe0f", "2640", "2642", "27a1", *TONES}
SAME_PERSON = {"1f468": ADULT, "1f469": ADULT, "1f466": CHILD, "1f467": CHILD, "1f474": ELDER, "1f475": ELDER}
# Emoji that show what another one shows: first, code points of their own for what is also spelt as a sequence.
SAME_SUBJECT = {
    "1f46b": f"{ADULT}-{HANDS}-{ADULT}",
    "1f46c": f"{ADULT}-{HANDS}-{ADULT}",
    "1f46d": f"{ADULT}-{HANDS}-{ADULT}",
    "1faf1-1faf2": HANDS,
    "1f491": f"{ADULT}-{HEART}-{ADULT}",
    "1f48f": f"{ADULT}-{HEART}-1f48b-{ADULT}",
    # Pictures that at least one style draws pixel for pixel alike: a face, a cat, flags of territories.
    "1f471": ADULT,
    "1f63a": "1f431",
    "1f1ed-1f1f2": "1f1e6-1f1fa",
    "1f1e7-1f1fb": "1f1f3-1f1f4",
    "1f1f8-1f1ef": "1f1f3-1f1f4",
    "1f1e8-1f1f5": "1f1eb-1f1f7",
    "1f1f2-1f1eb": "1f1eb-1f1f7",
    "1f1e8-1f1f6": "1f1f8-1f1e6",
    "1f1e9-1f1ec": "1f1ee-1f1f4",
    "1f1ea-1f1e6": "1f1ea-1f1f8",
    "1f1fa-1f1f2": "1f1fa-1f1f8",
}


@dataclass(frozen=True)
class Emoji:
    """One emoji, as drawn in every style.

    Attributes:
        code: Code points, as `canonical` writes them.
        image: File name in the emoji-datasource packages.
        family: What is kept on one side of the split; see `family`.
        caption: Its CLDR name.
        tags: CLDR keywords, separated by commas.
    """

    code: str
    image: str
    family: str
    group: str
    subgroup: str
    caption: str
    tags: str


def fetch(folder: Path) -> dict[str, Path]:
    """Download the packages and unpack what is needed; returns the folder of each."""
    if shutil.which("npm") is None:
        sys.exit("npm is not installed; install Node.js (apt install npm) and run this again")
    if importlib.util.find_spec("resvg_py") is None:
        sys.exit("resvg_py, which renders drawings, is not installed; pip install resvg-py and run this again")
    packages = {}
    for index, (package, contents) in enumerate(CONTENTS.items()):
        place = folder / str(index)
        place.mkdir()
        packed = subprocess.run(["npm", "pack", package], cwd=place, capture_output=True, text=True, check=False)
        if packed.returncode != 0:
            reason = (packed.stderr.strip().splitlines() or ["no message"])[-1]
            sys.exit(f"npm pack {package} failed: {reason}")
        prefixes = tuple(f"package/{name}" for name in contents)
        with tarfile.open(next(place.glob("*.tgz"))) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has it from 3.11.4 on
            archive.extractall(place, [m for m in archive if m.name.startswith(prefixes)])
        packages[package] = place / "package"
    return packages


def canonical(code: str) -> str:
    """Code points as every package can agree on: lower case, no leading zeros, no variation selectors."""
    return "-".join(point.lstrip("0") for point in code.lower().split("-") if point != "fe0f")


def family(code: str) -> str:
    """Name what an emoji shows, whatever the skin tone, sex and direction.

    A runner, a woman running and a man running to the right are one family: were they split, a model that has learnt
    one by heart would do well on the others.
    """
    points = [SAME_PERSON.get(point, point) for point in canonical(code).split("-") if point not in DETAILS]
    if len(points) > 1 and set(points) <= {ADULT, CHILD}:
        return FAMILY  # drawn as nearly the same silhouette for all of them
    subject = "-".join(points)
    return SAME_SUBJECT.get(subject, subject) or canonical(code)


def read_emoji(datasource: Path, captions: Path) -> list[Emoji]:
    """Read which emoji there are, skin tones included, and what they are called."""
    names: dict[str, tuple[str, str]] = {}
    for entry in _read_json(captions / "en" / "data.json", CAPTIONS):
        for variant in (entry, *entry.get("skins", [])):
            names[canonical(variant["hexcode"])] = (variant["label"], ", ".join(entry.get("tags", [])))
    emoji = []
    for entry in _read_json(datasource / "emoji.json", GOOGLE):
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            code = canonical(variant["unified"])
            if code not in names:
                sys.exit(f"{CAPTIONS} has no caption for {code} of {GOOGLE}")
            if entry["category"] not in GROUPS:
                sys.exit(f"emoji.json of {GOOGLE}: found the category {entry['category']!r}, expected one of {GROUPS}")
            place = (entry["category"], entry["subcategory"])
            emoji.append(Emoji(code, variant["image"], family(code), *place, *names[code]))
    return emoji


def held_out_families(emoji: list[Emoji]) -> set[str]:
    """A tenth of the families of every group, and at least one."""
    random = np.random.default_rng(SPLIT_SEED)
    chosen: set[str] = set()
    groups = {one.family: one.group for one in emoji}
    for group in GROUPS:
        members = sorted(name for name, of in groups.items() if of == group)
        if members:
            chosen.update(random.permutation(members)[: max(1, round(len(members) * HELD_OUT))].tolist())
    return chosen


def over_white(file: Path, package: str) -> NDArray[np.uint8]:
    """Read a picture of SIZE or a multiple of it, or a drawing; returns uint8 [SIZE, SIZE, 3], transparency turned white."""
    drawing = file.suffix == ".svg"
    try:
        with Image.open(io.BytesIO(_rendered(file)) if drawing else file) as opened:
            image = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        sys.exit(f"{file.name} of {package} cannot be read: {error}")
    side = max(image.size)
    image = ImageOps.pad(image, (side, side), color=(0, 0, 0, 0))
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(flat.resize((SIZE, SIZE), Image.Resampling.BOX))


def _rendered(file: Path) -> bytes:
    """A drawing in SVG as PNG, twice SIZE wide."""
    import resvg_py

    return resvg_py.svg_to_bytes(svg_path=str(file), width=2 * SIZE, height=2 * SIZE, skip_system_fonts=True)


def convert(packages: dict[str, Path], styles: dict[str, tuple[str, str]]) -> dict[str, NDArray[np.generic]]:
    """Read every emoji in each of some styles.

    Returns:
        Of every image: images uint8 [N, 64, 64, 3]; style, group, subgroup int64 [N], indices into style_names,
        group_names and subgroup_names; code, captions and tags str [N]; held_out bool [N].
    """
    emoji = read_emoji(packages[GOOGLE], packages[CAPTIONS])
    held_out = held_out_families(emoji)
    subgroups = list(dict.fromkeys(one.subgroup for one in sorted(emoji, key=lambda one: GROUPS.index(one.group))))
    images: list[NDArray[np.uint8]] = []
    drawn: list[tuple[int, Emoji]] = []
    for style, (name, (package, place)) in enumerate(styles.items()):
        for one, file in _files(emoji, packages[package] / place, package, complete=name in COMPLETE):
            images.append(over_white(file, package))
            drawn.append((style, one))
    return {
        "images": np.stack(images),
        "style": np.array([style for style, _ in drawn]),
        "group": np.array([GROUPS.index(one.group) for _, one in drawn]),
        "subgroup": np.array([subgroups.index(one.subgroup) for _, one in drawn]),
        "code": np.array([one.code for _, one in drawn]),
        "captions": np.array([one.caption for _, one in drawn]),
        "tags": np.array([one.tags for _, one in drawn]),
        "held_out": np.array([one.family in held_out for _, one in drawn]),
        "style_names": np.array(list(styles)),
        "group_names": np.array(GROUPS),
        "subgroup_names": np.array(subgroups),
    }


def of_first_styles(arrays: dict[str, NDArray[np.generic]], count: int) -> dict[str, NDArray[np.generic]]:
    """The same arrays with the images of the first styles only."""
    kept = arrays["style"].astype(np.int64) < count
    few = {name: values if name.endswith("_names") else values[kept] for name, values in arrays.items()}
    return few | {"style_names": arrays["style_names"][:count]}


def by_class(arrays: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """The same images at half the size with their group as the class, as the trainer takes them.

    Returns:
        images, test_images uint8 [N, 32, 32, 3]; labels, test_labels int64 [N].
    """
    blocks = arrays["images"].reshape(-1, SIZE // 2, 2, SIZE // 2, 2, 3)
    small = np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    held_out = arrays["held_out"].astype(np.bool_)
    return {
        "images": small[~held_out],
        "labels": arrays["group"][~held_out],
        "test_images": small[held_out],
        "test_labels": arrays["group"][held_out],
    }


def by_caption(arrays: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """The same images with the style in the caption, as the trainer takes them.

    Returns:
        images, test_images uint8 [N, 64, 64, 3]; captions, test_captions str [N], "waving hand, noto style"; keywords,
        test_keywords str [N], the same of the CLDR keywords; groups, test_groups, subgroups, test_subgroups int64 [N].
    """
    styles = arrays["style_names"][arrays["style"]]
    written = {
        "images": arrays["images"],
        "captions": np.array(
            [f"{text}, {style} style" for text, style in zip(arrays["captions"], styles, strict=True)]
        ),
        "keywords": np.array([f"{text}, {style} style" for text, style in zip(arrays["tags"], styles, strict=True)]),
        "groups": arrays["group"],
        "subgroups": arrays["subgroup"],
    }
    held_out = arrays["held_out"].astype(np.bool_)
    training = {name: values[~held_out] for name, values in written.items()}
    return training | {f"test_{name}": values[held_out] for name, values in written.items()}


def by_varied_captions(arrays: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """What a model is trained on that shall know unseen captions: fewer skin tones, more captions, and a validation part.

    Every subject keeps one skin tone in each style, drawn at random. Every training image has three captions: its name, one to
    three of its keywords, and its name with either its keywords or its subgroup. A sixteenth of the other families of every
    group is held out for validation, without skin tones and with names alone, and so is the test part. Both have the three styles
    of the other files, while the training part has all six.

    Returns:
        images uint8 [3 N, 64, 64, 3], each three times in a row, and captions str [3 N]; validation_images, validation_captions,
        test_images and test_captions.
    """
    random = np.random.default_rng(SPLIT_SEED)
    codes, groups, held_out = arrays["code"], arrays["group"], arrays["held_out"].astype(np.bool_)
    toned = np.array([not set(TONES).isdisjoint(code.split("-")) for code in codes])
    families = np.array([family(code) for code in codes])
    chosen: list[str] = []
    for group in range(len(GROUPS)):
        members = np.unique(families[(groups == group) & ~held_out])
        if len(members) > 1:
            chosen += random.permutation(members)[: max(1, round(len(members) * VALIDATION))].tolist()
    of_validation = np.isin(families, chosen) & ~held_out
    alike: dict[tuple[str, int], list[int]] = {}
    for index in np.flatnonzero(toned):
        subject = "-".join(point for point in codes[index].split("-") if point not in TONES)
        alike.setdefault((subject, int(arrays["style"][index])), []).append(int(index))
    kept = ~toned
    kept[[random.choice(variants) for variants in alike.values()]] = True
    training = np.flatnonzero(kept & ~held_out & ~of_validation)
    written = {
        "images": np.repeat(arrays["images"][training], 3, axis=0),
        "captions": np.array([text for index in training for text in _varied(arrays, int(index), random)]),
    }
    judged = ~toned & (arrays["style"].astype(np.int64) < len(STYLES))
    for name, part in (("validation", of_validation & judged), ("test", held_out & judged)):
        written[f"{name}_images"] = arrays["images"][part]
        written[f"{name}_captions"] = np.array([_in_style(arrays, int(index), "") for index in np.flatnonzero(part)])
    return written


def _varied(arrays: dict[str, NDArray[np.generic]], index: int, random: np.random.Generator) -> tuple[str, str, str]:
    """Three captions of an image."""
    name, subgroup = str(arrays["captions"][index]), str(arrays["subgroup_names"][arrays["subgroup"][index]])
    tags = [tag.strip() for tag in str(arrays["tags"][index]).split(",") if tag.strip()] or [name]
    words = ", ".join(random.permutation(tags)[: random.integers(1, 4)].tolist())
    longer = f"{subgroup.replace('-', ' ')}: {name}" if random.random() < 0.5 else f"{name}, {words}"
    return _in_style(arrays, index, name), _in_style(arrays, index, words), _in_style(arrays, index, longer)


def _in_style(arrays: dict[str, NDArray[np.generic]], index: int, text: str) -> str:
    """A text, or the name of an image, with the style of the image."""
    return f"{text or arrays['captions'][index]}, {arrays['style_names'][arrays['style'][index]]} style"


def _files(emoji: list[Emoji], folder: Path, package: str, *, complete: bool) -> Iterator[tuple[Emoji, Path]]:
    """Every emoji that is drawn in a folder, and its file; a complete style has them all."""
    drawn = {canonical(file.stem): file for file in sorted(folder.glob("*"))}
    for one in emoji:
        if one.code in drawn:
            yield one, drawn[one.code]
        elif complete:
            sys.exit(f"{package} has no picture {one.image}")


def _read_json(file: Path, package: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{file.name} of {package} cannot be read: {error}")
    if not isinstance(entries, list):
        sys.exit(f"{file.name} of {package}: found {type(entries).__name__}, expected a list of emoji")
    return entries


def main() -> None:
    """Fetch, convert, write."""
    with tempfile.TemporaryDirectory() as folder:
        varied = convert(fetch(Path(folder)), STYLES | MORE_STYLES)
    arrays = of_first_styles(varied, len(STYLES))
    found = len(arrays["images"]), len(arrays["subgroup_names"])
    if found != (IMAGES, SUBGROUPS):
        sys.exit(f"expected {IMAGES} images in {SUBGROUPS} subgroups, found {found[0]} in {found[1]}")
    DESTINATION.mkdir(parents=True, exist_ok=True)
    files = {
        "emoji64.npz": arrays,
        "emoji32.npz": by_class(arrays),
        "emoji-text.npz": by_caption(arrays),
        "emoji-varied.npz": by_varied_captions(varied),
    }
    for name, content in files.items():
        np.savez_compressed(DESTINATION / name, allow_pickle=False, **content)
    held_out = int(arrays["held_out"].sum())
    print(f"{DESTINATION}: {', '.join(files)}: {IMAGES - held_out} emoji to train on, {held_out} held out")


if __name__ == "__main__":
    main()
