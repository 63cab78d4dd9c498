"""C++ refuses the bundles that Python refuses, in one line, and opens those that Python opens."""

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import StarflowError
from starflow.runtime.sampler import Sampler
from tests.cpp_library import REPOSITORY, CppError, CppSampler
from tests.edited_manifest import edit_manifest

pytestmark = pytest.mark.usefixtures("cpp_folder")

SHIPPED = REPOSITORY / "runtime/shipped/digits"
BUNDLE = 2  # STARFLOW_BUNDLE
MUTATIONS = 300  # of each bundle
FLIPS = int(os.environ.get("STARFLOW_CPP_FLIPS", "300"))


def linked(bundle: Path, root: Path) -> Path:
    """A copy whose files are hard links, except for the manifest."""
    shutil.copytree(bundle, root, copy_function=os.link)
    for name in ("manifest.json", "manifest.sha256"):
        if (root / name).exists():
            content = (root / name).read_bytes()
            (root / name).unlink()
            (root / name).write_bytes(content)
    return root


def refusal(bundle: Path) -> CppError | None:
    """What C++ says against a bundle; None if it opens it."""
    try:
        with CppSampler(bundle, (1,), threads=1, variant=""):
            return None
    except CppError as error:
        assert str(error) and "\n" not in str(error)
        return error


def is_refused_by_python(bundle: Path) -> bool:
    try:
        Bundle.open(bundle)
    except StarflowError:
        return True
    return False


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    if path:
        yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


def replacements(value: Any) -> list[Any]:
    """Wrong or merely other values. Text that Pydantic would read as a number is not among them."""
    if isinstance(value, bool):
        return [not value, "nope", None, 7]
    if isinstance(value, int):
        return [value + 1, 0, -1, 2**40, 10**18, value + 0.5, None, "many", [], {}]
    if isinstance(value, float):
        return [value * 2, 0, -1.5, None, "many", []]
    if isinstance(value, str):
        return [value + "x", "", "nope", "../" + value, "S", 7, None, [value]]
    if isinstance(value, list):
        return [[], value[1:], value[:-1], value + value[-1:], value[::-1], None, {}, "nope"]
    if isinstance(value, dict):
        return [{}, None, [], value | {"unknown": 1}, dict(list(value.items())[1:])]
    return [0, "nope", [], {}, True]


def mutated(content: Any, rng: random.Random, paths: list[tuple[Any, ...]]) -> Any:
    """The manifest with one value changed or left out; sizes of equal depth are as likely as each other."""
    made = copy.deepcopy(content)
    depth = rng.choice(sorted({len(path) for path in paths}))
    path = rng.choice([path for path in paths if len(path) == depth])
    place = made
    for key in path[:-1]:
        place = place[key]
    if isinstance(place, dict) and rng.random() < 0.15:
        del place[path[-1]]
    else:
        place[path[-1]] = rng.choice(replacements(place[path[-1]]))
    return made


@pytest.fixture(scope="module")
def shapes_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shapes at two batch sizes each."""
    bundle = tmp_path_factory.mktemp("shapes") / "bundle"
    export_checkpoint(tiny_checkpoint, bundle, ExportOptions(batch=(1, 3), other_shapes=[(4, 12)]))
    return bundle


@pytest.mark.parametrize(
    "name",
    [
        "shipped",
        "shapes_bundle",
        "patches_bundle",
        "continuous_bundle",
        "denoising_bundle",
        "emoji_bundle",
        "students_bundle",
        "quantised_students_bundle",
    ],
)
def test_mutated_manifests(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    bundle = SHIPPED if name == "shipped" else request.getfixturevalue(name)
    root = linked(bundle, tmp_path / "bundle")
    assert refusal(root) is None
    content = json.loads((root / "manifest.json").read_text())
    (root / "manifest.sha256").unlink(missing_ok=True)
    rng, paths, refused = random.Random(name), list(places(content)), 0
    for number in range(MUTATIONS):
        text = json.dumps(mutated(content, rng, paths))
        (root / "manifest.json").write_text(text)
        expected, found = is_refused_by_python(root), refusal(root)
        # Python takes the last of two sizes of one file, and looks for a variant only when it needs one.
        may_refuse = found and any(
            reason in str(found) for reason in ("bytes, the manifest says", "has no cpu variant")
        )
        assert expected == (found is not None) or may_refuse, f"mutation {number}: {found}"
        refused += expected
    assert refused > MUTATIONS / 2


def test_flipped_bytes(tmp_path: Path) -> None:
    """Any byte of a manifest and of the headers of graphs and weights may be another one: an error, or a bundle that opens."""
    root = linked(SHIPPED, tmp_path / "bundle")
    (root / "manifest.sha256").unlink()
    rng, refused = random.Random(5), 0
    honest = (root / "manifest.json").read_bytes()
    weights = root / "graphs/weights/cpu-int8.safetensors"
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    weights.unlink()
    weights.write_bytes(whole)
    for number in range(FLIPS):
        content = bytearray(honest)
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        place = rng.randrange(header)
        with weights.open("r+b") as file:
            file.seek(place)
            file.write(bytes([rng.randrange(256)]))
        (root / "manifest.json").write_bytes(honest if number % 2 else content)
        error = refusal(root)
        assert error is None or error.status == BUNDLE
        refused += error is not None
        with weights.open("r+b") as file:
            file.seek(place)
            file.write(whole[place : place + 1])
    assert refused > FLIPS / 2
    (root / "manifest.json").write_bytes(honest)
    assert refusal(root) is None


def test_other_shapes_and_batch_sizes(shapes_bundle: Path) -> None:
    for shape in ((8, 8), (4, 12)):
        for batch in (0, 1, 3):
            with CppSampler(shapes_bundle, (1, *shape), height=shape[0], width=shape[1], batch=batch) as sampler:
                assert sampler.sizes["height"] == shape[0] and sampler.sizes["width"] == shape[1]
    for wrong in ({"height": 4, "width": 4}, {"batch": 2}, {"variant": "none"}, {"provider": "abacus"}, {"plan": "/"}):
        with pytest.raises(CppError):
            CppSampler(shapes_bundle, (1, 8, 8), **wrong)


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[" * 100_000, b"\xff\xfe", b'{"schema_version": ' + b"1" * 5000 + b"}", b'{"schema_version": 4}'],
)
def test_what_is_no_manifest(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    error = refusal(tmp_path)
    assert error and error.status == BUNDLE and "manifest.json" in str(error)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[9] ^= 1  # in a graph a name, in the header of weights the first quotation mark
    path.unlink()
    path.write_bytes(content)


def lead_outside(path: Path) -> None:
    outside = path.parents[3] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def lead_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip, lead_outside, lead_to_itself, make_folder])
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    root = linked(SHIPPED, tmp_path / "bundle")
    damage(root / "graphs/weights/cpu-int8.safetensors")
    error = refusal(root)
    assert error and error.status == BUNDLE and "cpu-int8.safetensors" in str(error)
    assert ("is missing" in str(error)) == (damage in (Path.unlink, lead_to_itself, make_folder))
    assert is_refused_by_python(root)


def test_a_manifest_that_is_a_link_to_itself_is_missing(tmp_path: Path) -> None:
    root = linked(SHIPPED, tmp_path / "bundle")
    lead_to_itself(root / "manifest.sha256")
    assert refusal(root) is None and not is_refused_by_python(root)
    lead_to_itself(root / "manifest.json")
    error = refusal(root)
    assert error and error.status == BUNDLE and "has no manifest.json" in str(error)


def test_links_of_a_snapshot_are_inside(tmp_path: Path) -> None:
    snapshot = linked(SHIPPED, tmp_path / "models/snapshots/0123")
    blobs = tmp_path / "models/blobs"
    blobs.mkdir()
    for path in [path for path in snapshot.rglob("*") if path.is_file()]:
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    assert refusal(snapshot) is None


def test_a_zero_byte_does_not_end_a_text(tmp_path: Path) -> None:
    root = linked(SHIPPED, tmp_path / "bundle")
    (root / "manifest.sha256").unlink()
    assert refusal(root) is None
    with (root / "manifest.json").open("ab") as file:
        file.write(b"\0")
    error = refusal(root)
    assert error and error.status == BUNDLE and "zero byte" in str(error)
    assert is_refused_by_python(root)


def test_a_digest_is_a_word(tmp_path: Path) -> None:
    root = linked(SHIPPED, tmp_path / "bundle")
    digests = root / "manifest.sha256"
    known = digests.read_text().split()[0]
    for text, opens in ((f"{known}\n", True), (f"{'0' * 64}  manifest.json\n{known}", True), (f"{known}\xff", False)):
        digests.write_bytes(text.encode("latin-1"))
        assert (refusal(root) is None) == opens != is_refused_by_python(root)


def test_a_changed_manifest_or_graph_is_noticed(tmp_path: Path) -> None:
    root = linked(SHIPPED, tmp_path / "bundle")
    content = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(content.replace('"noise_std": 0.1', '"noise_std": 0.2'))
    error = refusal(root)
    assert error and "was changed" in str(error)
    (root / "manifest.json").write_text(content)
    flip(root / "graphs/block3.cpu-int8.onnx")
    with CppSampler(root, (1, 28, 28), threads=1) as sampler:
        with pytest.raises(CppError, match=r"block3.*not what was exported") as refused:
            sampler.generate(sampler.noise(8, 0), np.zeros(8, np.int64))
        assert refused.value.status == BUNDLE
    with pytest.raises(CppError, match="not what was exported"):
        CppSampler(root, (1, 28, 28), verify=1)


def test_a_file_that_changes_later_is_noticed(tmp_path: Path) -> None:
    root = linked(SHIPPED, tmp_path / "bundle")
    with CppSampler(root, (1, 28, 28), threads=1) as sampler:
        flip(root / "graphs/weights/cpu-int8.safetensors")
        with pytest.raises(CppError, match="changed since the bundle was opened"):
            sampler.generate(sampler.noise(1, 0), np.zeros(1, np.int64))


def test_a_graph_that_is_not_the_manifests(tmp_path: Path) -> None:
    """Two graphs change places: each is what was exported, but not where the manifest says."""
    root = linked(SHIPPED, tmp_path / "bundle")

    def swap(content: Any) -> None:
        graphs = content["variants"][0]["graphs"]
        graphs[0]["file"], graphs[-1]["file"] = graphs[-1]["file"], graphs[0]["file"]

    edit_manifest(root, swap)
    with (
        CppSampler(root, (1, 28, 28), batch=8, threads=1) as sampler,
        pytest.raises(CppError, match="the manifest says") as refused,
    ):
        sampler.generate(sampler.noise(2, 0), np.zeros(2, np.int64))
    assert refused.value.status == BUNDLE


def test_a_size_without_a_name_is_none_of_the_manifests(tmp_path: Path) -> None:
    root = linked(SHIPPED, tmp_path / "bundle")
    variant = Bundle.open(root).manifest.variants[0]
    path = root / variant.graphs[0].file.path
    model = onnx.load(path, load_external_data=False)
    (unnamed,) = [size for size in model.graph.output[0].type.tensor_type.shape.dim if size.HasField("dim_param")]
    unnamed.ClearField("dim_param")
    path.unlink()  # a link to the shipped one
    path.write_bytes(model.SerializeToString())

    def seal(content: Any) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        content["variants"][0]["graphs"][0]["file"] |= {"bytes": path.stat().st_size, "sha256": digest}

    edit_manifest(root, seal)
    sequences = np.zeros(8, np.int64)
    with (
        Sampler.open(root, variant=variant.name, threads=1) as sampler,
        pytest.raises(StarflowError, match="the manifest says"),
    ):
        sampler.generate(sampler.noise(8, 0), sequences)
    with (
        CppSampler(root, (1, 28, 28), threads=1, variant=variant.name) as other,
        pytest.raises(CppError, match="the manifest says") as refused,
    ):
        other.generate(other.noise(8, 0), sequences)
    assert refused.value.status == BUNDLE


def test_requests_that_do_not_fit() -> None:
    with CppSampler(SHIPPED, (1, 28, 28), threads=1) as sampler:
        noise, labels = sampler.noise(2, 0), np.array([1, 2])
        wrongs: list[tuple[Any, Any, dict[str, Any]]] = [
            (noise, np.array([1, 10]), {}),
            (noise, np.array([-1, 1]), {}),
            (noise, np.array([1, 2, 3]), {}),
            (noise * np.nan, labels, {}),
            (noise, labels, {"guidance": [1.0, 2.0, 3.0]}),
            (noise, labels, {"denoise": "score"}),
            (noise, labels, {"attention_temperature": 1.2}),
            (noise, labels, {"denoising_rate": -1.0}),
            (noise, np.zeros((1, 1, 10), np.float32), {}),
        ]
        for z, condition, how in wrongs:
            with pytest.raises(CppError) as refused:
                sampler.generate(z, condition, **how)
            assert refused.value.status == 1, how  # STARFLOW_USAGE


def test_what_is_no_onnxruntime(tmp_path: Path) -> None:
    (tmp_path / "libonnxruntime.so").write_bytes(b"no library")
    for library, says in ((str(tmp_path / "libonnxruntime.so"), "cannot be loaded"), ("libm.so.6", "is not ONNX")):
        with pytest.raises(CppError, match=says) as refused:
            CppSampler(SHIPPED, (1, 28, 28), onnxruntime=library)
        assert refused.value.status == 3
