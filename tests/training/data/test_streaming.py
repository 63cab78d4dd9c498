"""Images that stay on disk: the same samples as in memory, and what is said about bad ones."""

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from datasets import DatasetDict
from pydantic import TypeAdapter

from starflow.runtime.plain.errors import DataError, UsageError
from starflow.training.data.dataset import load_dataset
from starflow.training.data.samples import Dataset, Samples
from starflow.training.data.source import DataSource
from starflow.training.data.stored_images import StoredImages
from starflow.training.data.tar_shards import shard_files
from tests.text_encoders import MINILM
from tests.training.data.streamed import digits, png, rows, write_shards

CPU = torch.device("cpu")


def load(folder: Path, **settings: Any) -> Dataset:
    return load_dataset(TypeAdapter(DataSource).validate_python({"mode": "L", "size": 8, **settings}), folder)


def shards(folder: Path, pattern: str, **settings: Any) -> Dataset:
    return load(folder, kind="webdataset", shards=pattern, **settings)


def arrow(folder: Path, path: Path, **settings: Any) -> Dataset:
    return load(folder, kind="huggingface", path=path, **settings)


def parts(data: Dataset) -> dict[str, tuple[torch.Tensor, Any]]:
    found = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: tuple(part.to(CPU)[:2]) for name, part in found.items()}  # type: ignore[misc]


@pytest.fixture
def in_memory(tmp_path: Path) -> Dataset:
    images, labels = digits()
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    return load_dataset(
        TypeAdapter(DataSource).validate_python({"kind": "npz", "path": tmp_path / "data.npz"}), tmp_path
    )


def test_shards_hold_the_samples_of_an_archive(tmp_path: Path, in_memory: Dataset) -> None:
    images, labels = digits()
    data = shards(tmp_path, write_shards(tmp_path / "s", images, cls=labels.tolist()))
    assert isinstance(data.train.values, StoredImages)
    assert data.train.values.shape == (108, 1, 8, 8)
    assert data.conditioning == in_memory.conditioning
    assert data.split == in_memory.split
    torch.testing.assert_close(parts(data), parts(in_memory), rtol=0, atol=0)


def test_shards_are_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    images, labels = digits(30)
    pattern = write_shards(tmp_path / "s", images, cls=labels.tolist())
    data = shards(tmp_path, pattern)
    assert isinstance(data.train.values, StoredImages)
    every = StoredImages(data.train.values.store, torch.arange(30), "L", 8, 2, None).to(CPU)
    theirs = [
        np.asarray(sample["png"])[..., 0] for sample in webdataset.WebDataset(pattern, shardshuffle=False).decode("pil")
    ]
    np.testing.assert_array_equal(every[:, 0].numpy(), np.stack(theirs))


def test_an_arrow_folder_holds_the_samples_of_an_archive(tmp_path: Path, in_memory: Dataset) -> None:
    rows(*digits()).save_to_disk(tmp_path / "hf", num_shards=3)
    data = arrow(tmp_path, tmp_path / "hf", label="digit")
    assert data.conditioning.class_names == tuple(f"digit {each}" for each in range(10))
    assert data.split == in_memory.split
    torch.testing.assert_close(parts(data), parts(in_memory), rtol=0, atol=0)


def test_captions_become_the_features_of_an_archive(tmp_path: Path) -> None:
    images, labels = digits(24)
    captions = [("a red apple", "two cats", "the sun")[number % 3] for number in range(24)]
    text = {"encoder": MINILM, "tokens": 5}
    np.savez(tmp_path / "data.npz", images=images, captions=np.array(captions))
    source = TypeAdapter(DataSource).validate_python({"kind": "npz", "path": tmp_path / "data.npz", **text})
    expected = load_dataset(source, tmp_path)
    rows(images, labels, captions).save_to_disk(tmp_path / "hf")
    pattern = write_shards(tmp_path / "s", images, cls=labels.tolist(), txt=captions)
    for data in (
        arrow(tmp_path, tmp_path / "hf", caption="text", **text),
        shards(tmp_path, pattern, **text),
    ):
        assert data.conditioning == expected.conditioning and data.text == expected.text
        assert data.split == expected.split
        torch.testing.assert_close(parts(data), parts(expected), rtol=0, atol=0)
        torch.testing.assert_close(data.null, expected.null, rtol=0, atol=0)


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as Python does for a package that is not there
    with pytest.raises(UsageError, match=r"need the package datasets: pip install '\.\[datasets\]'"):
        arrow(tmp_path, tmp_path)


def test_splits_of_an_arrow_folder_are_the_parts(tmp_path: Path) -> None:
    every, (images, labels) = rows(*digits()), digits()
    chosen = {"train": range(80), "validation": range(80, 90), "test": range(90, 120), "extra": range(3)}
    DatasetDict({name: every.select(places) for name, places in chosen.items()}).save_to_disk(tmp_path / "hf")
    found = parts(arrow(tmp_path, tmp_path / "hf", label="digit"))
    for name in ("train", "validation", "test"):
        places = list(chosen[name])
        np.testing.assert_array_equal(found[name][0][:, 0].numpy(), images[places])
        np.testing.assert_array_equal(found[name][1].numpy(), labels[places])


def test_parts_exclude_each_other_and_every_class_has_its_share(tmp_path: Path) -> None:
    images, labels = digits(200)
    data = shards(tmp_path, write_shards(tmp_path / "s", images, cls=labels.tolist()), holdout=0.1, validation=0.1)
    found = parts(data)
    everything = [image.tobytes() for values, _ in found.values() for image in values.numpy()]
    assert len(everything) == len(set(everything)) == 200
    assert [torch.bincount(found[name][1]).tolist() for name in ("validation", "test")] == [[2] * 10] * 2


def order(data: Dataset, seed: int) -> torch.Tensor:
    return data.train.order(torch.Generator().manual_seed(seed))


def test_an_epoch_goes_through_shards_and_mixes_neighbours(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "s", digits(400)[0], shards=10)
    data = shards(tmp_path, pattern, shuffle_buffer=20)
    assert isinstance(data.train.values, StoredImages)
    store, index = data.train.values.store, data.train.values.index
    one, again, other = order(data, 1), order(data, 1), order(data, 2)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one.sort().values, torch.arange(360))
    assert store.shards is not None
    visited = store.shards[index][one]
    # At most three shards of 36 samples lie within 36 + 2 x 20 places, and shards do not come in their order.
    assert max(len(set(window.tolist())) for window in visited.unfold(0, 20, 1)) <= 3
    assert visited.unfold(0, 20, 20).mode().values.tolist() != sorted(visited.unfold(0, 20, 20).mode().values.tolist())
    assert any(first > second for first, second in zip(one[:30].tolist(), one[1:30].tolist(), strict=False))


def test_without_a_buffer_the_order_is_that_of_images_in_memory(tmp_path: Path, in_memory: Dataset) -> None:
    images, labels = digits()
    data = shards(tmp_path, write_shards(tmp_path / "s", images, cls=labels.tolist()), shuffle_buffer=None)
    assert torch.equal(order(data, 3), order(in_memory, 3))


def test_images_of_any_size_are_scaled(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, shape in enumerate([(9, 7), (12, 30), (12, 12)]):
            add(tar, f"in/a.b/{number}.png", png(np.zeros(shape, np.uint8)))  # a key may have a folder with a dot
    data = shards(tmp_path, str(tmp_path / "*.tar"), size=5, mode="RGB")
    assert data.train.to(CPU).values.shape == (1, 3, 5, 5)
    assert data.conditioning.kind == "none"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


PNG = png(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("files", "settings", "expected"),
    [
        ({}, {}, r"a.tar: found no samples in 1 shard\(s\), expected KEY.jpg"),
        ({"1.txt": b"a dog"}, {}, r"a.tar, sample 1: found 0 images \(txt\), expected one of"),
        ({"1.png": PNG, "1.jpg": PNG}, {}, r"sample 1: found 2 images \(png, jpg\)"),
        ({"1.png": PNG, "1.cls": b"0", "2.png": PNG}, {}, "sample 2: has no .cls; other samples have one"),
        ({"1.png": PNG, "2.png": PNG, "2.cls": b"0"}, {}, "sample 2: has a .cls, but earlier samples have none"),
        ({"1.png": PNG, "1.cls": b"dog"}, {}, "sample 1: its .cls holds 'dog', expected the number of a class"),
        ({"1.png": PNG, "1.cls": b"99999999"}, {}, r"\.cls holds 99999999, expected classes from 0"),
        ({"1.png": PNG}, {"encoder": "e"}, "sample 1: has no .txt; data.encoder needs a caption for every image"),
        ({"1.png": PNG, "1.txt": b"\xff"}, {"encoder": "e"}, "sample 1: its .txt is no text in UTF-8"),
    ],
)
def test_bad_samples_are_named(
    tmp_path: Path, files: dict[str, bytes], settings: dict[str, Any], expected: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    with pytest.raises(DataError, match=expected) as caught:
        shards(tmp_path, str(tmp_path / "a.tar"), **settings)
    assert "\n" not in str(caught.value)


def test_damaged_shards_and_images_are_named(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "s", digits(8)[0], shards=1)
    path = tmp_path / "s/000.tar"
    whole = path.read_bytes()
    place = whole.index(b"IDAT")
    path.write_bytes(whole[:place] + b"JUNK" + whole[place + 4 :])
    data = shards(tmp_path, pattern)
    with pytest.raises(DataError, match=r"000.tar, 000000.png: "):
        for part in (data.train, data.validation, data.test):
            part.to(CPU)
    path.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"000.tar: is damaged, or no uncompressed tar file"):
        shards(tmp_path, pattern)
    with pytest.raises(UsageError, match=r"001.tar: does not exist; data.shards names tar files"):
        shards(tmp_path, str(tmp_path / "s/{001..002}.tar"))


def test_names_of_shards(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).touch()
    found = [file.name for file in shard_files(f"{tmp_path}/a-{{08..10}}.tar")]
    assert found == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [file.name for file in shard_files(f"{tmp_path}/*.tar")] == [*found, "b.tar"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image": "picture"}, "found the columns image, digit, text, but no picture; name it by data.image"),
        ({"image": "digit"}, "column digit is ClassLabel, expected images"),
        ({"label": "text"}, "column text holds .*, expected whole numbers in every row"),
        ({"caption": "digit", "encoder": "e"}, "row 0: digit is int, expected a caption"),
        ({"caption": "text", "encoder": "e"}, "row 1: text is NoneType, expected a caption"),
    ],
)
def test_bad_columns_are_named(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    images, labels = digits(12)
    captions: list[Any] = ["a", None, *"cdefghijkl"]
    rows(images, labels, captions).save_to_disk(tmp_path / "hf")
    with pytest.raises(DataError, match=expected):
        arrow(tmp_path, tmp_path / "hf", **settings)


def test_a_folder_that_is_no_arrow_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist; data.path names a folder that save_to_disk wrote"):
        arrow(tmp_path, tmp_path / "none")
    with pytest.raises(DataError, match="is no folder of save_to_disk, or damaged"):
        arrow(tmp_path, tmp_path)


def test_samples_choose_without_decoding(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "s", digits(40)[0])
    data = shards(tmp_path, pattern)
    for file in shard_files(pattern):
        file.unlink()
    chosen = data.train[torch.arange(5)]
    assert isinstance(chosen, Samples) and len(chosen) == 5
    with pytest.raises(DataError, match=r"cannot be read: No such file"):
        chosen.to(CPU)
