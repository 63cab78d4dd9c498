"""docs/bundle.md is enough to write a runtime from: this one was, and it makes the same samples.

The upper part knows the manual, `json`, NumPy and ONNX Runtime, and nothing of starflow. If a test here fails, either the
bundle or the manual has changed without the other.
"""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import pytest

# The second runtime


class FlowBlock:
    """One step graph with its buffers. `in_place` binds each cache to its update; else the update is fed back."""

    def __init__(self, root: Path, block: dict, graph: dict, in_place: bool) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # fed back, TensorScatter warns of every copy
        self.session = ort.InferenceSession(root / graph["file"]["path"], options, providers=["CPUExecutionProvider"])
        self.block, self.inputs, self.outputs, self.in_place = block, graph["inputs"], graph["outputs"], in_place
        self.updates = {t["updated_by"]: t["name"] for t in self.inputs if t["updated_by"]}
        self.buffers = {t["name"]: np.zeros(t["shape"], t["dtype"]) for t in self.inputs if "S" not in t["shape"]}

    def run(self, previous, condition=None):
        """One run over S tokens at the buffers' position: previous [B, S, D] -> x [B, S, D]."""
        arrays = self.buffers | {"previous": np.ascontiguousarray(previous, np.float32)}
        for tensor in self.inputs:
            if tensor["role"] == "condition":
                rows, _, width = tensor["shape"]
                unused = np.zeros((rows, previous.shape[1], width), np.float32)
                arrays["condition"] = unused if condition is None else np.ascontiguousarray(condition, np.float32)
        if not self.in_place:
            results = dict(zip((t["name"] for t in self.outputs), self.session.run(None, arrays), strict=True))
            self.buffers |= {into: results[name] for name, into in self.updates.items()}
            return results["x"]
        x = np.empty_like(arrays["previous"])
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in (arrays | {"x": x}).items()}
        binding = self.session.io_binding()
        for tensor in self.inputs:
            binding.bind_ortvalue_input(tensor["name"], values[tensor["name"]])
        for tensor in self.outputs:
            if tensor["role"] != "position":  # the caller counts
                binding.bind_ortvalue_output(tensor["name"], values[self.updates.get(tensor["name"], "x")])
        self.session.run_with_iobinding(binding)
        return x

    def decode(self, z, condition, chunk, threshold, iterations=32):
        """z [B, T, D] in block order -> x [B, T, D]; chunks of more than one token by Jacobi iteration."""
        prefix, first, tokens, buffers = self.block["prefix"], self.block["first_token"], z.shape[1], self.buffers
        buffers["noise"][:, prefix:] = z[:, first:]
        buffers["position"][0] = 0
        if prefix:
            self.run(np.zeros_like(z[:, :1]).repeat(prefix, 1), condition)
        last = z[:, :1]  # passes unchanged without a start token, is not looked at with one
        for start in range(first, tokens, chunk):
            old = z[:, start : start + chunk]
            buffers["position"][0] = prefix + start - first
            for _ in range(iterations):
                new = self.run(np.concatenate([last, old[:, :-1]], 1))
                change = np.square(new - old).mean() / np.square(new).mean()
                old = new
                if new.shape[1] == 1 or change < threshold:
                    break
            last = new[:, -1:]
        return np.concatenate([z[:, :first], buffers["samples"][:, 0, prefix:]], 1)


def at_shape(manifest: dict, shape) -> dict:
    """The manifest of data of one height and width; of the first ones where `shape` is None."""
    for other in [{}, *manifest["shapes"]]:
        one = {**manifest, **other, "shapes": []}
        if shape is None or one["model"]["data_shape"][1:] == list(shape):
            return one
    raise ValueError(f"no shape {shape}")


def at_batch(manifest: dict, count: int) -> dict:
    """The manifest at the smallest batch size that holds `count` images, or at the largest."""
    sizes = [{**manifest, **other, "batches": []} for other in [{}, *manifest.get("batches", [])]]
    fitting = [one for one in sizes if one["batch"] >= count]
    return min(fitting, key=lambda one: one["batch"]) if fitting else sizes[0]


def sample(
    root: Path,
    variant: str,
    noise,
    labels,
    weight,
    *,
    in_place=True,
    chunk=1,
    threshold=1e-3,
    temperature=1.0,
    shape=None,
):
    """Class labels [N] and noise [N, ...] -> data [N, C, H, W], guided by `weight`."""
    manifest = at_batch(at_shape(json.loads((root / "manifest.json").read_text()), shape), len(noise))
    assert manifest["schema_version"] in (1, 2, 3)
    model, condition, batch = manifest["model"], manifest["conditioning"], manifest["batch"]
    graphs = next(v["graphs"] for v in manifest["variants"] if v["name"] == variant)
    blocks = [FlowBlock(root, manifest["blocks"][g["block"]], g, in_place) for g in graphs]
    square = [model["patch_size"]] * 2
    if model["noise_layout"] == "image":
        noise = cut(noise, model, square)
    if manifest["prior"]:
        noise = noise * safetensors(root / manifest["prior"]["path"])["standard_deviation"]
    parts = []
    for start in range(0, len(noise), batch):
        chosen = np.minimum(np.arange(start, start + batch), len(noise) - 1)  # pad with copies of the last image
        x, null = noise[chosen], np.full(batch, condition["num_classes"])
        for flow in sorted(blocks, key=lambda flow: -flow.block["index"]):
            guided = flow.block["rows"] == 2 * batch
            ids = np.concatenate([labels[chosen], null]) if guided else labels[chosen]
            rows = np.full(flow.block["rows"], 1 / temperature)
            if model["family"] == "tarflow":
                rows[:batch] = 1
            values = {"label": ids, "guidance": weight, "guidance_scale": weight, "guidance_shift": weight}
            for name, value in (values | {"guidance_anneal": 0, "inverse_temperature": rows}).items():
                if name in flow.buffers:
                    flow.buffers[name][...] = value
            one_hot = np.eye(condition["width"])[ids][:, None] if flow.block["prefix"] else None
            turn = slice(None, None, -1 if flow.block["reversed"] else 1)
            own = cut(join(x, model, square), model, flow.block.get("patch") or square)
            own = flow.decode(own[:, turn], one_hot, chunk, threshold)[:, turn]
            x = cut(join(own, model, flow.block.get("patch") or square), model, square)
        parts.append(x[: len(noise) - start])
    return join(np.concatenate(parts), model, square)


AXES = {"row-column-channel": (2, 4, 3, 5, 1), "channel-row-column": (2, 4, 1, 3, 5)}


def tiles(model, patch):
    """Sizes of data [C, H, W] that are cut into patches."""
    (channels, height, width), (p, q) = model["data_shape"], patch
    return channels, height // p, p, width // q, q


def cut(x, model, patch):
    """Data [N, C, H, W] -> tokens [N, T, D]."""
    sizes = tiles(model, patch)
    return x.reshape(-1, *sizes).transpose(0, *AXES[model["patch_order"]]).reshape(len(x), sizes[1] * sizes[3], -1)


def join(tokens, model, patch):
    """Tokens [N, T, D] -> data [N, C, H, W]."""
    axes = AXES[model["patch_order"]]
    data = tokens.reshape(-1, *(tiles(model, patch)[axis - 1] for axis in axes))
    return data.transpose(0, *(np.argsort(axes) + 1)).reshape(-1, *model["data_shape"])


def denoise(root: Path, kind: str, x, condition, rate: float):
    """Data [N, C, H, W] with less noise, given condition tokens [N, m, width]."""
    manifest = json.loads((root / "manifest.json").read_text())
    entries = [each for each in manifest["denoisers"] if (each["kind"], each["precision"]) == (kind, "fp32")]
    network, batch = entries[0]["network"], manifest["batch"]
    session = ort.InferenceSession(root / network["file"]["path"], providers=["CPUExecutionProvider"])
    parts = []
    for start in range(0, len(x), batch):
        chosen = np.minimum(np.arange(start, start + batch), len(x) - 1)
        (found,) = session.run(None, {"x": x[chosen], "condition": condition[chosen]})
        parts.append(found[: len(x) - start])
    factor = manifest["model"]["noise_std"] ** 2 if kind == "score" else -0.3
    return x + rate * factor * np.concatenate(parts)


def safetensors(path: Path) -> dict:
    """Float32 tensors of a safetensors file by name."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = {name: entry for name, entry in json.loads(data[8 : 8 + size]).items() if name != "__metadata__"}
    return {
        name: np.frombuffer(data[8 + size :][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry["dtype"] == "F32"
    }


# What it is held to


@pytest.fixture(scope="session")
def tarflow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tiny STARFlow bundle lacks: class labels, linear guidance, a learned prior, no start token."""
    import torch

    from starflow.export.exporter import ExportOptions, export_checkpoint
    from starflow.training.autoregressive.config import TarflowConfig
    from starflow.training.checkpoint import save_checkpoint
    from starflow.training.config import CheckpointConfig
    from starflow.training.families import build_flow

    torch.manual_seed(0)
    config = TarflowConfig(
        in_channels=3,
        img_size=8,
        patch_size=2,
        channels=32,
        head_dim=16,
        num_blocks=2,
        layers_per_block=1,
        num_classes=10,
    )
    weights = build_flow(config).state_dict()
    for name, value in weights.items():
        spread = 0.02 if "proj_out" in name else 0.1  # scales are exp(a): more would explode
        value.copy_(torch.rand(value.shape) + 0.5 if name == "var" else value + spread * torch.randn(value.shape))
    folder = tmp_path_factory.mktemp("tarflow")
    save_checkpoint(folder / "checkpoint", CheckpointConfig(model=config), weights)
    export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions(batch=2, attention_temperature=True))
    return folder / "bundle"


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny STARFlow at two shapes."""
    from starflow.export.exporter import ExportOptions, export_checkpoint
    from tests.models import class_config, write_checkpoint

    folder = tmp_path_factory.mktemp("shapes")
    write_checkpoint(folder / "checkpoint", class_config())
    export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions(batch=2, other_shapes=[(4, 12)]))
    return folder / "bundle"


@pytest.fixture(scope="session")
def batches_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny STARFlow at two shapes, each at two batch sizes."""
    from starflow.export.exporter import ExportOptions, export_checkpoint
    from tests.models import class_config, write_checkpoint

    folder = tmp_path_factory.mktemp("batches")
    write_checkpoint(folder / "checkpoint", class_config())
    options = ExportOptions(batch=(3, 4), other_shapes=[(4, 12)])
    export_checkpoint(folder / "checkpoint", folder / "bundle", options)
    return folder / "bundle"


def agreement(
    bundle: Path,
    variant: str,
    *,
    chunk: int = 0,
    temperature: float = 1.0,
    in_place: bool = True,
    shape: tuple[int, int] | None = None,
) -> float:
    """Largest difference between the two runtimes, over three images, guided."""
    from starflow.runtime import Jacobi, Sampler

    labels, weight = np.array([3, 1, 4]), 1.5
    plan: Jacobi | Literal["sequential"] = Jacobi(chunk, threshold=1e-3) if chunk else "sequential"
    with Sampler.open(bundle, variant=variant, plan=plan, shape=shape, threads=1) as sampler:
        noise = sampler.noise(3, seed=7)
        expected = sampler.generate(noise, labels, guidance=weight, attention_temperature=temperature)
        unguided = sampler.generate(noise, labels, attention_temperature=temperature)
    assert np.abs(expected - unguided).max() > 0.01, "guidance changes nothing, so this would compare too little"
    options = {"in_place": in_place, "chunk": max(chunk, 1), "temperature": temperature, "shape": shape}
    found = sample(bundle, variant, noise, labels, weight, **options)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("chunk", [0, 5], ids=["sequential", "jacobi"])
def test_class_token_model(tiny_bundle: Path, variant: str, chunk: int) -> None:
    assert agreement(tiny_bundle, variant, chunk=chunk) <= 1e-5


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("chunk", [0, 5], ids=["sequential", "jacobi"])
def test_class_label_model(tarflow_bundle: Path, variant: str, chunk: int) -> None:
    assert agreement(tarflow_bundle, variant, chunk=chunk, temperature=1.3) <= 1e-5


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
def test_caches_fed_back_by_copy(tiny_bundle: Path, variant: str) -> None:
    assert agreement(tiny_bundle, variant, in_place=False) <= 1e-5


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
def test_another_shape(shapes_bundle: Path, variant: str) -> None:
    assert agreement(shapes_bundle, variant, shape=(4, 12)) <= 1e-5


@pytest.mark.parametrize("shape", [None, (4, 12)])
@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
def test_another_batch_size(batches_bundle: Path, variant: str, shape: tuple[int, int] | None) -> None:
    assert agreement(batches_bundle, variant, shape=shape) <= 1e-5


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("chunk", [0, 3], ids=["sequential", "jacobi"])
def test_patches_of_every_block(patches_bundle: Path, variant: str, chunk: int) -> None:
    assert agreement(patches_bundle, variant, chunk=chunk) <= 1e-5


@pytest.mark.parametrize("kind", ["score", "learned"])
def test_denoising(denoising_bundle: Path, kind: Literal["score", "learned"]) -> None:
    from starflow.runtime import Sampler

    with Sampler.open(denoising_bundle, threads=1) as sampler:
        x, text = sampler.noise(3, seed=7), np.random.default_rng(0).standard_normal((3, 5, 6), np.float32)
        expected = sampler.denoise(x, text, how=kind, rate=0.5)
    found = denoise(denoising_bundle, kind, x, text, 0.5)
    assert np.abs(found - x).max() > 0.01
    assert np.abs(found - expected).max() <= 1e-5


def test_weights_lie_where_the_manual_says(tiny_bundle: Path) -> None:
    """Offset and length in a graph name the same bytes as the safetensors header does, aligned to 64."""
    onnx = pytest.importorskip("onnx")
    folder = tiny_bundle / "graphs"
    graphs = sorted(folder.glob("*.onnx"))
    assert graphs
    for path in graphs:
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            data = (folder / place["location"]).read_bytes()
            size = int.from_bytes(data[:8], "little")
            begin, end = json.loads(data[8 : 8 + size])[tensor.name]["data_offsets"]
            assert (int(place["offset"]), int(place["length"])) == (8 + size + begin, end - begin)
            assert int(place["offset"]) % 64 == 0
            assert (8 + size) % 4096 == 0
