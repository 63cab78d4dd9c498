"""A manifest cannot contradict itself or its graphs: no size of it can be changed alone."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_file import read_manifest
from starflow.runtime.plain.errors import BundleError

# Numbers that describe, and that nothing else in the bundle states a second time.
FREE = {
    "parameters",
    "noise_std",
    "scale",
    "shift",
    "weight_bytes",
    "activation_peaks",
    "bytes",  # compared with the file itself
    "num_classes",  # of labels: the size of a table in the graph
    "max_chunk",  # a smaller one is a smaller limit
}


def numbers(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers in parsed JSON."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from numbers(value, (*path, key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield path


def kinds_of_numbers(content: Any) -> list[tuple[Any, ...]]:
    """Paths of the first and the last number of each kind: at the same names, and at the same place in a shape."""
    first: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    last: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for path in numbers(content):
        kind = tuple("*" if isinstance(key, int) else key for key in path[:-1]) + path[-1:]
        first.setdefault(kind, path)
        last[kind] = path
    return list(dict.fromkeys((*first.values(), *last.values())))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


@pytest.fixture(scope="module")
def batches_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shapes at two batch sizes each."""
    bundle = tmp_path_factory.mktemp("batches") / "bundle"
    export_checkpoint(tiny_checkpoint, bundle, ExportOptions(batch=(1, 3), other_shapes=[(4, 12)]))
    return bundle


@pytest.fixture(params=["tiny_bundle", "continuous_bundle", "captioned_bundle", "batches_bundle"])
def manifest(request: pytest.FixtureRequest) -> Any:
    """The parsed manifest of a bundle of each family, of one with captions, and of one with several shapes and batch sizes."""
    return json.loads((request.getfixturevalue(request.param) / "manifest.json").read_text())


def test_every_size_is_tied_to_another(manifest: Any) -> None:
    read_manifest(manifest)
    tied = 0
    for path in kinds_of_numbers(manifest):
        value = manifest
        for key in path:
            value = value[key]
        accepted = []
        for wrong in (value + 1, 0 if value else -1, -value - 1, 10**400):
            try:
                read_manifest(changed(manifest, path, wrong))
            except ValidationError:
                tied += 1
            else:
                accepted.append(wrong)
        assert not accepted or any(part in FREE for part in path), f"{path}: {value} may be {accepted}"
    assert tied > 50


def test_numbers_that_are_none(manifest: Any) -> None:
    for path in kinds_of_numbers(manifest):
        wrongs: list[object] = [float("nan"), float("inf"), None, "many", []]
        for wrong in wrongs:
            with pytest.raises(ValidationError):
                read_manifest(changed(manifest, path, wrong))


@pytest.mark.parametrize("wrong", [True, 1.0, "1", None, 0.5])
def test_the_schema_version_is_a_whole_number(tiny_bundle: Path, tmp_path: Path, wrong: object) -> None:
    content = json.loads((tiny_bundle / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"schema_version": wrong}))
    with pytest.raises(BundleError, match="schema_version"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"schema_version": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"", "is not JSON"),
        (b"null", "schema_version"),
    ],
)
def test_what_is_no_json_is_one_line(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=says) as caught:
        Bundle.open(tmp_path)
    assert "\n" not in str(caught.value)
