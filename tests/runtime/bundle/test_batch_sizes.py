"""Several batch sizes in one bundle: each against the bundle of that size alone, over the same weights."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler, SamplerPool
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_file import read_manifest
from starflow.runtime.command_line import main
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from tests.edited_manifest import edit_manifest
from tests.models import (
    class_config,
    tarflow_config,
    velocity_config,
    write_checkpoint,
    write_latent_checkpoint,
    write_velocity,
)

SIZES = (1, 3)
SHAPES = [(8, 8), (4, 12)]
CONFIGS: dict[str, Callable[[], CheckpointConfig]] = {
    "starflow": class_config,
    "tarflow": tarflow_config,
    "velocity": velocity_config,
}
# By number of images, the sizes of their batches.
RUNS = {1: [1], 2: [3], 3: [3], 4: [3, 1], 5: [3, 3], 7: [3, 3, 1]}


class Bundles:
    """The bundles of a checkpoint: of both batch sizes, and of each alone."""

    def __init__(self, folder: Path, config: CheckpointConfig, **options: Any) -> None:
        self.folder = folder
        write = write_velocity if config.model.family == "continuous-flow" else write_checkpoint
        write(folder / "checkpoint", config)
        self.both = self.export("both", batch=SIZES, **options)
        self.alone = {size: self.export(f"alone{size}", batch=size, **options) for size in SIZES}

    def export(self, name: str, **options: Any) -> Path:
        export_checkpoint(self.folder / "checkpoint", self.folder / name, ExportOptions(**options))
        return self.folder / name


@pytest.fixture(scope="module", params=CONFIGS)
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp(request.param), CONFIGS[request.param]())


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A STARFlow of ten classes at two shapes."""
    folder = tmp_path_factory.mktemp("shaped")
    return Bundles(folder, class_config(), shape=SHAPES[0], other_shapes=SHAPES[1:])


def in_parts(alone: dict[int, Path], count: int, call: Callable[[Sampler, slice], NDArray], **options: Any) -> NDArray:
    """What a call returns if every part runs on the bundle of its batch size alone."""
    parts, start = [], 0
    for size in RUNS[count]:
        with Sampler.open(alone[size], threads=1, **options) as sampler:
            parts.append(call(sampler, slice(start, min(start + size, count))))
        start += size
    return np.concatenate(parts)


@pytest.mark.parametrize("count", RUNS)
def test_the_smallest_batch_that_holds_what_is_left(count: int) -> None:
    parts = batches(count, *SIZES)
    assert [len(index) for _, index in parts] == RUNS[count]
    assert [part for part, _ in parts] == [part for part, _ in batches(count, *reversed(SIZES))]
    kept = np.concatenate([index[: part.stop - part.start] for part, index in parts])
    np.testing.assert_array_equal(kept, np.arange(count))
    assert [part.start for part, _ in parts][1:] == [part.stop for part, _ in parts][:-1]


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("count", RUNS)
def test_images_are_those_of_the_bundle_of_each_size(bundles: Bundles, count: int, variant: str) -> None:
    labels, guidance = np.arange(count) % 3, [1.0 + image for image in range(count)]
    with Sampler.open(bundles.both, variant=variant, threads=1) as sampler:
        assert sampler.manifest.batch == 3
        noise, reports = sampler.noise(count, seed=5), list[tuple[int, int]]()
        found = sampler.generate(noise, labels, guidance=guidance, progress=lambda *report: reports.append(report))
        work = sampler._running.loop.work
    assert {total for _, total in reports} == {len(RUNS[count]) * work}

    def generate(sampler: Sampler, part: slice) -> NDArray:
        return sampler.generate(noise[part], labels[part], guidance=guidance[part])

    np.testing.assert_array_equal(found, in_parts(bundles.alone, count, generate, variant=variant))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_data_are_inverted_in_the_same_parts(shaped: Bundles, count: int) -> None:
    labels = np.arange(count)
    with Sampler.open(shaped.both, threads=1) as sampler:
        data = sampler.noise(count, seed=6)
        found = sampler.invert(data, labels)

    def inverted(name: str, sampler: Sampler, part: slice) -> NDArray:
        return getattr(sampler.invert(data[part], labels[part]), name)

    for name in ("noise", "log_likelihood", "log_determinant"):
        expected = in_parts(shaped.alone, count, partial(inverted, name))
        np.testing.assert_array_equal(getattr(found, name), expected)


def opened_graphs(sampler: Sampler) -> set[str]:
    """Which of the bundle's graphs have a session, by what their names end in."""
    return {path.removesuffix(".onnx").split("fp32")[1] for path in sampler.backend._sessions._loaded}  # type: ignore[attr-defined]


def test_a_size_is_opened_when_images_need_it(bundles: Bundles) -> None:
    with Sampler.open(bundles.both, threads=1) as sampler:
        assert opened_graphs(sampler) == set()
        sampler.sample([1])
        assert opened_graphs(sampler) == {".batch1"}
        sampler.sample([1, 2])
        assert opened_graphs(sampler) == {".batch1", ""}
    for batch, graphs in ((1, {".batch1"}), (3, {""})):
        with Sampler.open(bundles.both, threads=1, batch=batch) as sampler:
            assert sampler.manifest.batch == batch
            sampler.sample([1, 2, 0, 1])
            assert opened_graphs(sampler) == graphs


def test_twins_share_the_sessions_of_every_size(bundles: Bundles) -> None:
    with Sampler.open(bundles.both, threads=1) as sampler:
        expected = sampler.sample([1, 2, 0, 1], seed=3)
    with SamplerPool.open(bundles.both, size=2, threads=1) as pool, pool.sampler() as one, pool.sampler() as other:
        np.testing.assert_array_equal(one.sample([1, 2, 0, 1], seed=3), expected)
        before = dict(one.backend._sessions._loaded)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(other.sample([1, 2, 0, 1], seed=3), expected)
        assert other.backend._sessions._loaded == before  # type: ignore[attr-defined]
        twin = one.twin()
    np.testing.assert_array_equal(twin.sample([1, 2, 0, 1], seed=3), expected)
    twin.close()


def test_weights_are_there_once(bundles: Bundles) -> None:
    stored = {path: load_file(path / "graphs/weights/fp32.safetensors") for path in (bundles.both, bundles.alone[3])}
    both, alone = ({name for name in tensors if "_padding" not in name} for tensors in stored.values())
    assert both == alone
    manifest = Bundle.open(bundles.both).manifest
    files = {variant.weights for size in SIZES for variant in manifest.at_batch(size).variants}
    assert len(files) == 1
    sizes = [sum(file.bytes for file in Bundle.open(path).files()) for path in (bundles.both, bundles.alone[3])]
    graphs = sum(path.stat().st_size for path in bundles.both.glob("graphs/*.batch1.onnx"))
    assert sizes[0] - sizes[1] < graphs + 65536  # and a longer header


def without_files(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_files(v) for k, v in value.items() if k not in ("file", "weights", "provenance")}
    return [without_files(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("size", SIZES)
def test_the_manifest_of_one_size_is_an_ordinary_one(bundles: Bundles, size: int) -> None:
    expected = Bundle.open(bundles.alone[size]).manifest.model_dump(mode="json")
    found = Bundle.open(bundles.both).at_batch(size).manifest.model_dump(mode="json")
    assert without_files(found) == without_files(expected)
    assert found["schema_version"] == 1 and found["batches"] == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_every_size(shaped: Bundles, shape: tuple[int, int], size: int) -> None:
    found = Bundle.open(shaped.both).at_shape(shape).at_batch(size)
    assert found.place == (None if shape == SHAPES[0] else shape, None if size == 3 else size)
    expected = Bundle.open(shaped.alone[size]).at_shape(shape).manifest
    assert without_files(found.manifest.model_dump(mode="json")) == without_files(expected.model_dump(mode="json"))
    with Sampler.open(shaped.both, shape=shape, threads=1) as sampler:
        noise = sampler.noise(size, seed=4)
        images = sampler.generate(noise, [7], guidance=2.0)
    with Sampler.open(shaped.alone[size], shape=shape, threads=1) as sampler:
        np.testing.assert_array_equal(images, sampler.generate(noise, [7], guidance=2.0))
    graphs = {path.relative_to(shaped.both).as_posix() for path in shaped.both.glob("graphs/*.onnx")}
    assert {file.path for file in Bundle.open(shaped.both).files()} == graphs | {"graphs/weights/fp32.safetensors"}
    assert len(graphs) == 2 * 2 * len(SHAPES) * len(SIZES)


def test_a_bundle_of_one_size_is_what_it_was(bundles: Bundles, repository: Path) -> None:
    """Older releases of starflow read it: it has schema 1, and no field that schema 1 does not know."""
    content = json.loads((bundles.alone[3] / "manifest.json").read_text())
    assert content["schema_version"] == 1
    schema = json.loads((repository / "runtime/schema/manifest-1.json").read_text())["$defs"]
    known = [set(part["properties"]) for name, part in schema.items() if name.endswith("Manifest")]
    assert set(content) in known
    several = json.loads((bundles.both / "manifest.json").read_text())
    assert several["schema_version"] == 2
    assert [other["batch"] for other in several["batches"]] == [1]


def test_sizes_in_any_order_and_twice(bundles: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = str(bundles.folder / "checkpoint")
    assert main(["export", checkpoint, "-o", str(tmp_path / "b"), "--batch", "3,1,3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_sizes"] == [1, 3]
    found, expected = (
        Bundle.open(path).manifest.model_dump(exclude={"provenance"}) for path in (tmp_path / "b", bundles.both)
    )
    assert found == expected
    assert main(["export", checkpoint, "-o", str(tmp_path / "c"), "--batch", "3,3", "--json"]) == 0
    assert Bundle.open(tmp_path / "c").manifest.schema_version == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("0,8", "--batch 0,8: give a number of images of at least 1 and at most 65,536"),
        ("1,65537", "--batch 1,65537: give a number of images"),
        ("1,", "--batch 1,: give numbers of images, such as 8 or 1,8"),
        ("1 8", "--batch 1 8: give numbers of images"),
        (",".join(map(str, range(1, 18))), "found 17 batch sizes, expected at most 16"),
    ],
)
def test_sizes_that_cannot_be(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, asked: str, message: str
) -> None:
    assert main(["export", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--batch", asked]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_size_that_is_not_there(bundles: Bundles, capsys: pytest.CaptureFixture) -> None:
    message = "batch 2: this bundle has 1, 3; `starflow export --batch` adds others"
    with pytest.raises(UsageError, match=message):
        Sampler.open(bundles.both, batch=2)
    np.save(bundles.folder / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    for command in ("sample", "bench", "inspect", "verify"):
        assert main([command, str(bundles.both), "--batch", "2"]) == 2
        assert message in capsys.readouterr().err
    assert main(["score", str(bundles.both), str(bundles.folder / "x.npy"), "--batch", "2"]) == 2
    assert message in capsys.readouterr().err
    assert main(["build", str(bundles.both), "--target", "tensorrt-rtx:8.9", "--batch", "2"]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="batch 1: this bundle has 3;"):
        Sampler.open(bundles.alone[3], batch=1)


def test_commands_take_a_size(bundles: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, checkpoint = str(bundles.both), str(bundles.folder / "checkpoint")
    for size in SIZES:
        x = tmp_path / f"{size}.npy"
        given = ["--labels", "1,2", "--batch", str(size), "--threads", "1"]
        assert main(["sample", root, *given, "--latents", str(x), "--out", str(tmp_path / "x.png")]) == 0
        with Sampler.open(bundles.alone[size], threads=1) as sampler:
            np.testing.assert_array_equal(np.load(x), sampler.generate(sampler.noise(2), [1, 2]))
        assert main(["verify", root, "--batch", str(size), "--checkpoint", checkpoint, "--backend", "onnxruntime"]) == 0
        capsys.readouterr()
        assert main(["inspect", root, "--batch", str(size), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["batch"], summary["batch_sizes"]) == (size, [size])
        assert "batches" not in summary
    for words, size in (([], 3), (["--batch", "1"], 1)):
        assert main(["bench", root, "--repetitions", "1", "--json", *words]) == 0
        assert {each["batch"] for each in json.loads(capsys.readouterr().out)["variants"]} == {size}
    assert main(["inspect", root, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["batch"], summary["batch_sizes"], summary["batches"]) == (3, [1, 3], "1, 3")
    assert main(["inspect", root]) == 0
    assert "batches    1, 3" in capsys.readouterr().out


def test_a_plan_belongs_to_its_size(bundles: Bundles, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(bundles.both, root)
    given = [
        "--images",
        "3",
        "--repetitions",
        "1",
        "--budget",
        "10",
        "--backend",
        "onnxruntime",
        "--variant",
        "cpu-fp32",
    ]
    assert main(["calibrate", str(root), "--plan", "--batch", "1", *given]) == 0
    small = Bundle.open(root).manifest
    assert small.plans == ()
    plans = small.at_batch(1).plans
    if not plans:  # token by token was the fastest for one image
        return
    with Sampler.open(root, variant="cpu-fp32", threads=1) as sampler, Sampler.open(root, batch=1, threads=1) as one:
        assert one.plan == plans[0].plan != sampler.plan
        assert sampler.decoding == f"batches of 3 {sampler._running.loop.decoding}; batches of 1 {one.decoding}"
        np.testing.assert_array_equal(sampler.sample([2]), one.sample([2]))
    assert main(["calibrate", str(root), "--plan", *given]) == 0
    assert Bundle.open(root).manifest.at_batch(1).plans == plans


def test_weights_are_not_calibrated_at_a_size(bundles: Bundles, capsys: pytest.CaptureFixture) -> None:
    assert main(["calibrate", str(bundles.both), "--weights", "int8", "--batch", "1"]) == 2
    assert "--batch: all batch sizes share their weights" in capsys.readouterr().err


def test_quantised_weights_serve_every_size(tmp_path: Path) -> None:
    """With caches of 8 bits, whose scales depend on the rows; twice, since a second calibration replaces the first."""
    bundles = Bundles(tmp_path, class_config(channels=128, layers_per_block=(1, 1)), other_shapes=SHAPES[1:])
    calibrate = ["--weights", "int8", "--lowering", "cpu", "--images", "6", "--budget", "0.5", "--product", "row"]
    assert main(["calibrate", str(bundles.alone[3]), *calibrate]) == 0
    for _ in range(2):
        assert main(["calibrate", str(bundles.both), *calibrate]) == 0
    whole = Bundle.open(bundles.both)
    whole.verify_hashes()
    quantised = [place.variant("cpu-int8", "cpu") for place in whole.places()]
    assert len(quantised) == 4 and len({variant.weights for variant in quantised}) == 1
    assert quantised[0].quantization and quantised[0].quantization.caches
    assert quantised[0].quantization.timing
    assert [each.batch for each in quantised[0].quantization.timing.batches] == [3, 1]
    assert all(each.quantization == quantised[0].quantization for each in quantised)
    left = {path.relative_to(bundles.both).as_posix() for path in bundles.both.glob("graphs/**/*.*")}
    assert left == {file.path for file in whole.files()}
    for shape in SHAPES:
        images = {}
        with Sampler.open(bundles.alone[3], variant="cpu-int8", shape=shape, threads=1) as sampler:
            noise = sampler.noise(3, seed=5)
            expected = sampler.generate(noise, [1, 2, 3], guidance=1.0)
        for batch in SIZES:
            with Sampler.open(bundles.both, variant="cpu-int8", shape=shape, batch=batch, threads=1) as sampler:
                images[batch] = sampler.generate(noise, [1, 2, 3], guidance=1.0)
        with Sampler.open(bundles.both, variant="cpu-fp32", shape=shape, threads=1) as sampler:
            exact = sampler.generate(noise, [1, 2, 3], guidance=1.0)
        np.testing.assert_array_equal(images[3], expected)
        quantisation = np.linalg.norm(images[3] - exact)
        assert quantisation > 0
        assert np.linalg.norm(images[1] - images[3]) < 0.05 * quantisation


def sampled_part(noise: NDArray, sampler: Sampler, part: slice) -> NDArray:
    return sampler.generate(noise[part], [1])


def test_plainly_rounded_weights_serve_every_size(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path, class_config(channels=128, layers_per_block=(1, 1)), precisions=("fp16",))
    for path in (bundles.both, *bundles.alone.values()):
        assert main(["calibrate", str(path), "--weights", "int8", "--plain"]) == 0
    for variant in ("cpu-int8", "portable-int8"):
        for count in (1, 4):
            with Sampler.open(bundles.both, variant=variant, threads=1) as sampler:
                noise = sampler.noise(count, seed=5)
                found = sampler.generate(noise, [1])
            expected = in_parts(bundles.alone, count, partial(sampled_part, noise), variant=variant)
            np.testing.assert_array_equal(found, expected)


def decoded_part(data: NDArray, how: Literal["none", "decoder"], sampler: Sampler, part: slice) -> NDArray:
    return sampler.to_images(data[part], denoise=how)


def encoded_part(images: NDArray, sampler: Sampler, part: slice) -> NDArray:
    return sampler.encode_images(images[part])


def test_decoders_and_encoders_have_every_size(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    blocks: dict[str, Any] = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    widths: dict[str, Any] = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    autoencoder: Any = AutoencoderTiny(1, 1, latent_channels=1, upsampling_scaling_factor=2, **blocks, **widths)
    write_latent_checkpoint(tmp_path / "c", class_config(), autoencoder, (1, 16, 16))
    for name, batch in (("both", SIZES), ("1", 1), ("3", 3)):
        export_checkpoint(tmp_path / "c", tmp_path / name, ExportOptions(batch=batch))
    alone = {size: tmp_path / str(size) for size in SIZES}
    for count in (1, 2, 4):
        with Sampler.open(tmp_path / "both", threads=1) as sampler:
            data = sampler.noise(count, seed=1)
            pixels, denoised = (sampler.to_images(data, denoise=how) for how in ("none", "decoder"))
            images = np.tanh(np.random.default_rng(0).standard_normal((count, 1, 16, 16), np.float32))
            latents = sampler.encode_images(images)
            graphs = {path.split("fp32")[1] for path in sampler._running.beside._sessions._sessions}  # type: ignore[attr-defined]
        assert graphs == {{1: ".batch1.onnx", 3: ".onnx"}[size] for size in RUNS[count]}
        np.testing.assert_array_equal(pixels, in_parts(alone, count, partial(decoded_part, data, "none")))
        np.testing.assert_array_equal(denoised, in_parts(alone, count, partial(decoded_part, data, "decoder")))
        np.testing.assert_array_equal(latents, in_parts(alone, count, partial(encoded_part, images)))

    def other_decoder(content: dict[str, Any]) -> None:
        content["batches"][0]["autoencoder"]["decoders"][1]["noise_std"] *= 2

    edit_manifest(tmp_path / "both", other_decoder)
    with pytest.raises(BundleError, match="batches, 1: its decoders differ from those of batch 3"):
        Bundle.open(tmp_path / "both")


@pytest.mark.slow
def test_denoisers_have_every_size(
    denoising_model: tuple[Path, AutoregressiveFlow], denoising_bundle: Path, tmp_path: Path
) -> None:
    options = ExportOptions(batch=(1, 2), shape=(4, 12), condition_tokens=5, denoisers=("score", "learned"))
    export_checkpoint(denoising_model[0], tmp_path / "b", options)
    text = np.random.default_rng(1).standard_normal((3, 5, 6), np.float32)
    kinds: tuple[Literal["score", "learned"], ...] = ("score", "learned")
    for kind in kinds:
        with Sampler.open(tmp_path / "b", threads=1) as sampler, Sampler.open(denoising_bundle, threads=1) as alone:
            x = sampler.noise(3, seed=7)
            both, found, one = (sampler.denoise(x[part], text[part], how=kind) for part in ([0, 1], [0, 1, 2], [2]))
            expected = alone.denoise(x, text, how=kind)
            assert len(sampler._running.beside._sessions._sessions) == 2  # type: ignore[attr-defined]
        np.testing.assert_array_equal(both, expected[:2])
        np.testing.assert_array_equal(found, np.concatenate([both, one]))
        np.testing.assert_allclose(one, expected[2:], rtol=1e-5, atol=2e-5)


def test_captions_are_encoded_by_one_encoder(
    captioned_checkpoint: Path, captioned_bundle: Path, tmp_path: Path
) -> None:
    export_checkpoint(captioned_checkpoint, tmp_path / "b", ExportOptions(batch=(1, 2)))
    assert len(list(tmp_path.glob("b/graphs/text_encoder*.onnx"))) == 1
    with Sampler.open(tmp_path / "b", threads=1) as sampler, Sampler.open(captioned_bundle, threads=1) as alone:
        for captions in (["a red apple", "a dog"], ["a dog"]):
            noise = alone.noise(len(captions), seed=2)
            found, expected = (each.generate(noise, captions, guidance=1.5) for each in (sampler, alone))
            np.testing.assert_allclose(found, expected, atol=1e-5)


def set_in(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to(content[path[-1]]) if callable(to) else to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("schema_version", to=1), "schema_version 1: a bundle of one batch size has 1, one of several has 2"),
        (set_in("batches", to=[]), "schema_version 2: a bundle of one batch size has 1, one of several has 2"),
        (set_in("batches", to=lambda batches: batches * 2), "batches: found sizes 3, 1, 1; each must be smaller"),
        (set_in("batches", 0, "batch", to=5), "batches: found sizes 3, 5; each must be smaller"),
        (set_in("batches", 0, "batch", to=2), "batches, 2: .*rows, prefix or capacity do not fit"),
        (set_in("batches", 0, "blocks", 0, "rows", to=lambda rows: rows + 1), "batches, 1: .*rows, prefix or capacity"),
        (set_in("batches", 0, "blocks", 0, "reversed", to=lambda found: not found), "batches, 1: its blocks differ"),
        (
            set_in("batches", 0, "variants", 0, "name", to="other"),
            "batches, 1: its variants differ from those of batch 3",
        ),
        (set_in("batches", 0, "variants", to=lambda found: found[::-1]), "batches, 1: its variants differ"),
        (set_in("batches", 0, "variants", 0, "weights", "path", to="graphs/x.safetensors"), "batches, 1: its variants"),
        (
            set_in("batches", 0, "variants", 0, "graphs", 0, "inputs", 0, "role", to="noise"),
            "batches, 1: .*takes noise twice",
        ),
        (set_in("batches", 0, "shapes", to=[]), "shapes"),
        (set_in("shapes", 0, "batches", to=[]), "shapes, 4x12: its batch sizes differ from those of the default"),
        (set_in("shapes", 0, "batches", 0, "batch", to=2), "shapes, 4x12: its batch sizes differ"),
        (set_in("shapes", 0, "batches", 0, "blocks", 1, "rows", to=9), "shapes, 4x12: .*batches, 1: .*rows, prefix or"),
        (set_in("shapes", 0, "batches", 0, "blocks", 0, "capacity", to=9), "shapes, 4x12: .*batches, 1: .*capacity"),
    ],
)
def test_a_manifest_whose_sizes_contradict_each_other(
    shaped: Bundles, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = json.loads((shaped.both / "manifest.json").read_text())
    read_manifest(content)
    change(content)
    with pytest.raises(ValidationError, match=message):
        read_manifest(content)


def test_a_damaged_graph_of_a_smaller_size(bundles: Bundles, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(bundles.both, root)
    graph = next(root.glob("graphs/*cpu-fp32.batch1.onnx"))
    content = graph.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    graph.write_bytes(changed)
    with Sampler.open(root, threads=1) as sampler:
        sampler.sample([1, 2])
        with pytest.raises(BundleError, match=r"batch1\.onnx: its content is not what was exported"):
            sampler.sample([1])
        sampler.sample([1, 2])
    graph.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"batch1\.onnx: has \d+ bytes, the manifest says"):
        Bundle.open(root)
    graph.unlink()
    with pytest.raises(BundleError, match=r"batch1\.onnx: is missing"):
        Bundle.open(root)
