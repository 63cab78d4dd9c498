"""Data sources: what is read from each, and what is said about bad ones."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from starflow.runtime.plain.errors import DataError, UsageError
from starflow.runtime.plain.images import to_uint8
from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import to_float
from starflow.training.data.source import Digits8Source, FolderSource, NpzSource
from starflow.training.text.captions import read_captions


def picture(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def folder(path: Path, **settings: Any) -> FolderSource:
    return FolderSource.model_validate({"kind": "folder", "path": path, **settings})


def npz(path: Path, **arrays: NDArray[Any]) -> NpzSource:
    np.savez(path, allow_pickle=False, **arrays)
    return NpzSource.model_validate({"kind": "npz", "path": path, "holdout": 0.25})


def images(count: int, *shape: int) -> NDArray[np.uint8]:
    return np.arange(count * int(np.prod(shape)), dtype=np.uint8).reshape(count, *shape)


def test_pixels_survive_the_way_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_float(pixels)
    assert (x.min().item(), x.max().item()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(x.numpy())[:, :, :, 0], pixels[:, 0].numpy())


def test_digits8(tmp_path: Path) -> None:
    data = load_dataset(Digits8Source.model_validate({"kind": "digits8"}), tmp_path)
    assert data.train.values.shape == (1527, 1, 8, 8)
    assert (len(data.validation), len(data.test)) == (90, 180)
    assert data.train.tensor.max() == 255
    assert data.conditioning.num_classes == 10
    assert data.null == 10


def test_folder_classes_are_its_subfolders(tmp_path: Path) -> None:
    for index in range(5):
        picture(tmp_path / "red" / f"{index}.png", 200)
        picture(tmp_path / "black" / "deep" / f"{index}.png", 10)
    data = load_dataset(folder(tmp_path, holdout=0.2, validation=0.2), tmp_path)
    assert data.conditioning.class_names == ("black", "red")
    for part, count in ((data.train, 6), (data.validation, 2), (data.test, 2)):
        assert part.values.shape == (count, 3, 4, 6)
        assert isinstance(part.condition, torch.Tensor)
        # Images and labels stay together: the red channel tells the class.
        assert part.tensor[:, 0, 0, 0].tolist() == [[10, 200][label] for label in part.condition.tolist()]


def test_folder_resizes_and_converts(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(9, 7))
    picture(tmp_path / "b.jpg", size=(12, 30))
    picture(tmp_path / "c.jpg", size=(12, 12))
    data = load_dataset(folder(tmp_path, size=5, mode="L"), tmp_path)
    assert data.train.values.shape == (1, 1, 5, 5)
    assert data.conditioning.kind == "none"


def test_holdout_is_the_same_every_time(tmp_path: Path) -> None:
    source = npz(tmp_path / "a.npz", images=images(40, 2, 2), labels=np.arange(40))
    labels: list[dict[str, list[int]]] = []
    for data in (load_dataset(source, tmp_path), load_dataset(source, tmp_path)):
        parts = {"train": data.train, "validation": data.validation, "test": data.test}
        labels.append({})
        for name, part in parts.items():
            assert isinstance(part.condition, torch.Tensor)
            labels[-1][name] = part.condition.tolist()
    assert labels[0] == labels[1]
    assert sorted(label for part in labels[0].values() for label in part) == list(range(40))
    assert [len(part) for part in labels[0].values()] == [28, 2, 10]


def test_npz_layouts(tmp_path: Path) -> None:
    colour = images(8, 2, 4, 3)
    features = np.random.default_rng(0).normal(size=(8, 5, 7)).astype(np.float32)
    data = load_dataset(npz(tmp_path / "c.npz", images=colour, features=features), tmp_path)
    assert data.train.values.shape == (5, 3, 2, 4)
    assert data.conditioning.tokens == 5
    assert data.conditioning.width == 7
    assert data.null is not None
    assert data.null.shape == (5, 7)
    assert any(np.array_equal(data.test.tensor[0].numpy().transpose(1, 2, 0), image) for image in colour)


def test_npz_with_its_own_test_set(tmp_path: Path) -> None:
    arrays = {"images": images(3, 2, 2), "labels": np.array([0, 1, 0])}
    data = load_dataset(
        npz(tmp_path / "t.npz", **arrays, test_images=images(2, 2, 2), test_labels=np.array([1, 2])), tmp_path
    )
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 2)
    assert data.conditioning.num_classes == 3  # a class may occur among the held-out images only


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"pictures": images(2, 2, 2)}, "found pictures, expected an array named images"),
        ({"images": np.zeros((2, 2, 2))}, r"images is float64 \(2, 2, 2\), expected uint8"),
        ({"images": images(2, 2)}, "expected uint8"),
        ({"images": images(0, 2, 2)}, "holds no images"),
        ({"images": images(1, 2, 2)}, "too few"),
        ({"images": images(2, 2, 2), "labels": np.zeros(3, int)}, r"labels is int64 \(3,\), expected integers \[N\]"),
        ({"images": images(2, 2, 2), "labels": np.array([0, -1])}, "labels holds -1"),
        ({"images": images(2, 2, 2), "features": np.zeros((2, 3))}, r"features .* expected float32 \[N, T, W\]"),
        ({"images": images(2, 2, 2), "labels": np.zeros(2, int), "features": np.zeros((2, 3, 4))}, "one of them"),
        ({"images": images(2, 2, 2), "test_images": images(2, 3, 2)}, "test_images holds entries of shape"),
        ({"images": images(2, 2, 2), "labels": np.zeros(2, int), "test_images": images(2, 2, 2)}, "test_labels"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, NDArray[Any]], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        load_dataset(npz(tmp_path / "bad.npz", **arrays), tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_npz(tmp_path: Path) -> None:
    source = npz(tmp_path / "a.npz", images=images(4, 8, 8))
    source.path.write_bytes(source.path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a\.npz: cannot be read as \.npz"):
        load_dataset(source, tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        load_dataset(NpzSource.model_validate({"kind": "npz", "path": tmp_path / "absent.npz"}), tmp_path)


def test_bad_folders(tmp_path: Path) -> None:
    source = folder(tmp_path / "images")
    with pytest.raises(UsageError, match="does not exist"):
        load_dataset(source, tmp_path)
    source.path.mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_dataset(source, tmp_path)
    picture(source.path / "a.png")
    (source.path / "b.png").write_bytes((source.path / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png: is not an image, or damaged"):
        load_dataset(source, tmp_path)
    picture(source.path / "b.png", size=(7, 4))
    with pytest.raises(DataError, match=r"b\.png: is 7x4, .*a\.png is 6x4; set data\.size"):
        load_dataset(source, tmp_path)
    picture(source.path / "class" / "b.png")
    with pytest.raises(DataError, match=r"a\.png: lies next to class folders"):
        load_dataset(source, tmp_path)


def test_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "c.csv").write_text('file,caption\nb.png,"a blue, b"\na.png,an a\n')
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"file": f, "caption": c}) for f, c in (("b.png", "a blue, b"), ("a.png", "an a")))
    )
    expected = {tmp_path / "b.png": "a blue, b", tmp_path / "a.png": "an a"}
    assert read_captions(tmp_path / "c.csv", tmp_path) == expected
    assert read_captions(tmp_path / "c.jsonl", tmp_path) == expected


@pytest.mark.parametrize("name", ["metadata", "mine"])
def test_captions_by_the_names_of_hugging_face(tmp_path: Path, name: str) -> None:
    """Its `imagefolder` layout: further columns are left alone, folders may stand before the name."""
    picture(tmp_path / "train/b.png")
    picture(tmp_path / "a.png")
    entries = (("train/b.png", "a blue, b"), ("a.png", "an a"))
    (tmp_path / f"{name}.csv").write_text('caption,file_name,text\nno,train/b.png,"a blue, b"\nno,a.png,an a\n')
    lines = [json.dumps({"file_name": file, "text": text, "license": 4}) for file, text in entries]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    expected = {tmp_path / "train/b.png": "a blue, b", tmp_path / "a.png": "an a"}
    assert read_captions(tmp_path / f"{name}.csv", tmp_path) == expected
    assert read_captions(tmp_path / f"{name}.jsonl", tmp_path) == expected


def test_our_own_names_come_first(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,file,text,caption\nb.png,a.png,no,an a\n")
    assert read_captions(tmp_path / "metadata.csv", tmp_path) == {tmp_path / "a.png": "an a"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,label\na.png,cat\n"),
        ("metadata.csv", "image,text\na.png,cat\n"),
        ("metadata.csv", "file_name,text\na.png\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": null}'),
        ("mine.jsonl", '{"file_name": "a.png", "caption": "cat"}'),
        ("metadata.jsonl", "3"),
    ],
)
def test_a_missing_column_of_hugging_face(tmp_path: Path, name: str, content: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}: entry 1 lacks `file_name` or `text`; both are texts") as caught:
        read_captions(tmp_path / name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"file": "c.png", "caption": "x"}', r"entry 1 names c\.png, which is not in"),
        ('{"file": "a.png"}', "entry 1 lacks `file` or `caption`"),
        ("file,caption", "neither JSON lines nor"),
        ("", "holds no captions"),
    ],
)
def test_bad_captions(tmp_path: Path, content: str, expected: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(DataError, match=expected):
        read_captions(tmp_path / "c.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        (
            {"labels": np.full(20, 10**12)},
            "labels holds 1000000000000, expected classes from 0, and fewer than 1,048,576",
        ),
        ({"labels": np.full(20, 2**63 + 5, np.uint64)}, "labels holds 9223372036854775813"),
        ({"labels": -np.ones(20, np.int64)}, "labels holds -1"),
        ({"features": np.full((20, 3, 6), np.nan, np.float32)}, "features holds NaN or infinite values"),
        ({"features": np.full((20, 3, 6), 1e300)}, "features holds NaN or infinite values"),
        ({"labels": np.array([{}] * 20, object)}, "holds object, expected numbers or text"),
    ],
)
def test_conditions_beyond_reason(arrays: dict[str, Any], found: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, images=np.zeros((20, 8, 8), np.uint8), **arrays)
    with pytest.raises(DataError, match=found) as caught:
        load_dataset(NpzSource(kind="npz", path=path), tmp_path)
    assert "\n" not in str(caught.value)


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((20, 8, 8), np.uint8))
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("images.npy", buffer.getvalue())
    with pytest.raises(DataError, match="it holds two arrays of one name"):
        load_dataset(NpzSource(kind="npz", path=tmp_path / "data.npz"), tmp_path)


def test_pictures_are_read_as_scoring_reads_them(tmp_path: Path) -> None:
    """16 bits are rounded and transparency is laid on black, as `test_image_file.py` compares with arrays by hand."""
    (tmp_path / "images").mkdir()
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(values).save(tmp_path / "images/a.png")
    clear = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    clear.save(tmp_path / "images/b.png")
    clear.save(tmp_path / "images/c.png")
    source = FolderSource(kind="folder", path=tmp_path / "images", mode="L", holdout=0.3)
    data = load_dataset(source, tmp_path)
    found = {int(part.tensor.sum()): part.tensor[0, 0].numpy() for part in (data.train, data.validation, data.test)}
    assert np.array_equal(found.pop(0), np.zeros((8, 8)))
    assert np.array_equal(next(iter(found.values())), np.rint(values / 257))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "content", ["é".encode("latin1"), "file,caption".encode("utf-16"), b"\0", b"[" * 100_000, b"1" + b"0" * 5000]
)
def test_captions_that_are_no_captions(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"captions.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_captions(path, tmp_path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_caption_longer_than_any(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "c.jsonl").write_text(json.dumps({"file": "a.png", "caption": "x" * 70_000}))
    with pytest.raises(DataError, match="entry 1 has 70,000 characters, expected at most 65,536"):
        read_captions(tmp_path / "c.jsonl", tmp_path)
