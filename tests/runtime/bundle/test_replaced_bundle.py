"""A bundle whose name is given to another one, or whose files are changed, while somebody has it open."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle, changing_manifest, replace_manifest
from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.own_folder import BUNDLE
from tests.made_once import MadeOnce
from tests.models import class_config, write_checkpoint


@pytest.fixture(scope="session")
def other_bundle(made_once: MadeOnce) -> Path:
    """A bundle of the same sizes as the tiny one, of other weights."""

    def fill(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint", class_config(), seed=1)
        export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions(batch=2))

    return made_once("tiny-other-bundle", fill) / "bundle"


@pytest.fixture
def root(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, alone in its folder."""
    (tmp_path / "alone").mkdir()
    return Path(shutil.copytree(tiny_bundle, tmp_path / "alone" / "bundle"))


def replace_by(root: Path, source: Path) -> None:
    """What `starflow export --force` does."""
    with atomic_folder(root, BUNDLE, replace=True) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def samples(source: Path | Sampler) -> NDArray:
    if isinstance(source, Sampler):
        return source.generate(source.noise(2), [0, 1])
    with Sampler.open(source, threads=1) as sampler:
        return samples(sampler)


def test_an_open_sampler_makes_samples_of_the_bundle_that_was_opened(
    root: Path, tiny_bundle: Path, other_bundle: Path
) -> None:
    before, after = samples(tiny_bundle), samples(other_bundle)
    assert not np.allclose(before, after)
    with Sampler.open(root, threads=1) as sampler:  # its graphs are opened when they are first needed
        replace_by(root, other_bundle)
        assert np.array_equal(samples(root), after)
        assert np.array_equal(samples(sampler), before)
        assert len(os.listdir(root.parent)) == 2, "the old bundle stays as long as it is read"
    replace_by(root, tiny_bundle)
    assert os.listdir(root.parent) == ["bundle"]
    assert np.array_equal(samples(root), before)


def test_a_file_changed_in_place_is_refused(root: Path, other_bundle: Path) -> None:
    with Sampler.open(root, threads=1) as sampler:
        shutil.copytree(other_bundle, root, dirs_exist_ok=True)
        with pytest.raises(BundleError, match="changed since the bundle was opened; open it again"):
            samples(sampler)
    with Sampler.open(root, threads=1) as sampler:
        (root / "graphs" / "weights" / "fp32.safetensors").unlink()
        with pytest.raises(BundleError, match=r"fp32.safetensors: changed since"):
            samples(sampler)


def test_weights_changed_without_a_trace_are_found_by_their_digest(root: Path) -> None:
    path = root / "graphs" / "weights" / "fp32.safetensors"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    samples(root)
    with pytest.raises(BundleError, match=r"fp32.safetensors: its content is not what was exported"):
        Sampler.open(root, threads=1, verify=True)


@pytest.mark.parametrize("how", ["exchanged", "in place"])
def test_nothing_measured_on_one_bundle_is_written_into_another(root: Path, other_bundle: Path, how: str) -> None:
    bundle = Bundle.open(root)
    if how == "exchanged":
        replace_by(root, other_bundle)
    else:
        shutil.copytree(other_bundle, root, dirs_exist_ok=True)
    manifest = (root / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="was replaced meanwhile, so nothing was written"), changing_manifest(bundle):
        pass
    assert (root / "manifest.json").read_bytes() == manifest


def test_a_variant_relied_on_must_be_the_same(root: Path) -> None:
    bundle = Bundle.open(root)
    first, *others = bundle.manifest.variants
    changed = first.model_copy(update={"activation_peaks": {"layer": 2.0}})
    with changing_manifest(Bundle.open(root)) as manifest:
        replace_manifest(bundle, manifest.model_copy(update={"variants": (changed, *others)}))
    with changing_manifest(bundle, others[0].name):
        pass
    with pytest.raises(BundleError, match="replaced meanwhile"), changing_manifest(bundle, first.name):
        pass


def test_a_graph_that_was_edited_is_refused(root: Path) -> None:
    """It loads, has the same size, and computes something else."""
    path = root / "graphs/block0.cpu-fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    eps = next(a for node in model.graph.node for a in node.attribute if a.name == "epsilon")
    eps.f = 0.5
    assert len(model.SerializeToString()) == path.stat().st_size
    path.write_bytes(model.SerializeToString())
    with (
        pytest.raises(BundleError, match="its content is not what was exported"),
        Sampler.open(root, threads=1) as sampler,
    ):
        sampler.sample([1], count=1)


def test_one_process_at_a_time_changes_a_manifest(root: Path) -> None:
    """Else the second one writes what it has read before the first one wrote."""
    read = threading.Event()

    def change() -> None:
        with changing_manifest(Bundle.open(root)):
            read.set()

    with changing_manifest(Bundle.open(root)):
        second = threading.Thread(target=change)
        second.start()
        assert not read.wait(0.3)
    assert read.wait(10)
    second.join()


def test_a_changed_manifest_is_noticed(root: Path) -> None:
    path = root / "manifest.json"
    text = path.read_text()
    for changed in (
        text.replace('"scale": 1.0', '"scale": 1.5'),
        text.replace("\n", "\r\n"),
        json.dumps(json.loads(text)),
    ):
        assert changed != text
        path.write_text(changed, newline="")
        with pytest.raises(BundleError, match=r"was changed after it was written.*remove manifest.sha256"):
            Bundle.open(root)
    (root / "manifest.sha256").unlink()
    Bundle.open(root)  # as those of older versions are


def test_sha256sum_reads_the_digest(root: Path) -> None:
    subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=root, check=True)
    bundle = Bundle.open(root)
    with changing_manifest(bundle) as manifest:
        replace_manifest(bundle, manifest.model_copy(update={"plans": ()}))
    subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=root, check=True)


@pytest.fixture
def writing(root: Path, tiny_bundle: Path, other_bundle: Path) -> Iterator[Callable[[], bool]]:
    """Two bundles replace one another all the time; says whether that still goes on."""
    done = threading.Event()
    failed: list[Exception] = []

    def write() -> None:
        try:
            while not done.is_set():
                for source in (other_bundle, tiny_bundle):
                    replace_by(root, source)
        except Exception as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    yield writer.is_alive
    done.set()
    writer.join()
    assert failed == []


def test_readers_get_one_bundle_or_the_other(
    root: Path, tiny_bundle: Path, other_bundle: Path, writing: Callable[[], bool]
) -> None:
    known = [samples(tiny_bundle), samples(other_bundle)]
    seen = [
        next(i for i, each in enumerate(known) if np.array_equal(found, each))
        for found in (samples(root) for _ in range(60))
    ]
    assert set(seen) == {0, 1} and writing()
