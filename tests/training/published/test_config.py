"""Published configurations and `starflow import`: the weights of the recorded models, through files, give the recorded vectors."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import CheckpointError, StarflowError, UsageError
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive, open_checkpoint
from starflow.training.config import TextEncoding
from starflow.training.families import build_flow
from starflow.training.published.config import read_config
from tests.conformance.cases import Case
from tests.conformance.torch_calls import run_call

VECTORS = Path(__file__).parents[2] / "data" / "conformance"
CASES = (
    "S01_forward",
    "S06_patch2",
    "S07_R2L_text_all",
    "S08_nosos_exp",
    "S09a_gqa_swiglu_rms",
    "S09b_lm_style_top",
    "S10_class_conditional",
    "S14_identity_block",
    "S15_top_channels",
    "S16_unconditional_2d",
    "T1_unconditional",
    "T2_class_conditional",
    "T4_vp_learned_prior",
)

# The options of the published 256 x 256 text-to-image model, as its YAML has them.
T2I = {
    "no_flip": 1,
    "fsdp": 1,
    "img_size": 256,
    "txt_size": 128,
    "channel_size": 4,
    "patch_size": 1,
    "channels": 3072,
    "blocks": 6,
    "layers_per_block": "2 2 2 2 2 24",
    "noise_std": 0.3,
    "lr": 6.4e-05,
    "nvp": 1,
    "rope": 1,
    "adaln": 0,
    "sos": 1,
    "seq_order": "L2R",
    "use_softplus": 1,
    "cond_top_only": 1,
    "use_final_norm": 1,
    "vae": "stabilityai/sd-vae-ft-ema",
    "text": "google/flan-t5-xl",
    "cfg": 2.5,
    "soft_clip": 4,
}


def case_of(name: str) -> Case:
    return Case(VECTORS / name)


def write_yaml(path: Path, options: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"arguments": [{name: value} for name, value in options.items()]}))
    return path


def as_arguments(constructor: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor options of STARFlow as the training script's arguments, with an autoencoder in front of the flow."""
    options = dict(constructor)
    layers = options.pop("layers_per_block")
    options |= {
        "layers_per_block": " ".join(map(str, layers)),
        "blocks": options.pop("num_blocks"),
        "channel_size": options.pop("in_channels"),
        "img_size": 8 * options["img_size"],
        "vae": "stabilityai/sd-vae-ft-ema",
        "lr": 1e-4,
        "no_flip": 1,
    }
    return {name: int(value) if isinstance(value, bool) else value for name, value in options.items()}


def import_case(case: Case, folder: Path, form: str) -> Path:
    """Run the command on a recorded model: `json` takes a .pth file, `yaml` a .safetensors file."""
    constructor, family = case.config["constructor"], case.config["family"]
    if form == "json":
        weights, config = folder / "weights.pth", folder / "config.json"
        torch.save({"model": {f"module.{name}": value for name, value in case.weights.items()}}, weights)
        config.write_text(json.dumps({"family": family, "constructor": constructor}))
    else:
        weights = folder / "weights.safetensors"
        save_file(case.weights, weights)
        config = folder / "config.yaml"
        if family == "starflow":
            write_yaml(config, as_arguments(constructor))
        else:
            config.write_text(yaml.safe_dump(dict(constructor)))
    extra = ["--classes", "10"] if case.name.startswith("S10") else []
    out = folder / "checkpoint"
    assert main(["import", str(weights), "--config", str(config), "--family", family, "-o", str(out), *extra]) == 0
    return out


def deviations(case: Case, model: AutoregressiveFlow) -> list[float]:
    """Deviation of every output of `forward` from the recorded vectors, in units of the allowed one."""
    found = []
    for call in case.config["calls"]:
        if call["op"] != "forward":
            continue
        outputs = run_call(case, model, call)
        for key, expected in call["outputs"].items():
            difference = torch.as_tensor(outputs[key]).double() - case.tensors[expected["tensor"]]
            found.append(float(difference.abs().max()) / expected["atol"])
    assert found
    return found


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize("name", CASES)
def test_imported_model_gives_the_recorded_vectors(name: str, form: str, tmp_path: Path) -> None:
    case = case_of(name)
    config, model = load_autoregressive(import_case(case, tmp_path, form))
    assert all(deviation <= 1 for deviation in deviations(case, model))
    assert config.image.mode == ("latent" if name.startswith("S") else "RGB")
    assert config.latent.scale == (0.18215 if form == "yaml" and name.startswith("S") else 1.0)


def test_a_wrong_option_that_no_shape_shows_is_seen_by_the_vectors(tmp_path: Path) -> None:
    case = case_of("S01_forward")
    out = import_case(case, tmp_path, "json")
    document = json.loads((out / "config.json").read_text())
    document["model"]["seq_order"] = "R2L"
    (out / "config.json").write_text(json.dumps(document))
    assert max(deviations(case, load_autoregressive(out)[1])) > 100


def test_half_storage_stays_close(tmp_path: Path) -> None:
    case = case_of("S01_forward")
    weights, config, out = tmp_path / "w.pth", tmp_path / "c.json", tmp_path / "checkpoint"
    torch.save(case.weights, weights)
    config.write_text(json.dumps({"family": "starflow", "constructor": case.config["constructor"]}))
    assert main(["import", str(weights), "--config", str(config), "-o", str(out), "--half"]) == 0
    _, tensors = open_checkpoint(out)
    for name in tensors:
        assert torch.equal(torch.from_numpy(tensors[name]()), case.weights[name].half().float())
    assert not any("attn_mask" in name or name == "var" for name in tensors)


def test_summary_names_what_was_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = case_of("S10_class_conditional")
    weights, out = tmp_path / "w.safetensors", tmp_path / "checkpoint"
    save_file(case.weights, weights)
    arguments = as_arguments(case.config["constructor"]) | {"text": "ten.vocab", "use_pretrained_lm": None}
    del arguments["txt_dim"]
    config = write_yaml(tmp_path / "c.yaml", arguments)
    command = ["import", str(weights), "--config", str(config), "-o", str(out), "--class-names", *"0123456789"]
    assert main(command) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "conditioning class" in line and line.rstrip().endswith("ignored lr, no_flip")

    assert main([*command, "--json"]) == 2  # it is there already
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--json", "--force", "--noise-std", "0.1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["conditioning"]["class_names"] == list("0123456789")
    assert summary["noise_std"] == 0.1 and open_checkpoint(out)[0].noise_std == 0.1
    assert summary["layers"] == [1, 1]
    assert summary["parameters"] == sum(
        value.numel()
        for name, value in case.weights.items()
        if name in build_flow(open_checkpoint(out)[0].model).state_dict()
    )


def test_the_published_text_to_image_model(tmp_path: Path) -> None:
    published = read_config(write_yaml(tmp_path / "t2i.yaml", T2I))
    config = published.checkpoint
    assert isinstance(config.model, StarflowConfig)
    assert (config.model.img_size, config.model.in_channels, config.model.head_dim) == (32, 4, 64)
    assert (config.model.num_blocks, config.model.layers_per_block) == (6, (2, 2, 2, 2, 2, 24))
    assert (config.conditioning.kind, config.conditioning.tokens, config.conditioning.width) == ("features", 128, 2048)
    assert (config.noise_std, config.latent.scale, config.image.mode) == (0.3, 0.18215, "latent")
    assert set(published.ignored) == {"no_flip", "fsdp", "lr", "nvp", "adaln", "cfg"}
    with torch.device("meta"):
        model = build_flow(config.model)
    width = 3072
    layer = 12 * width**2 + (3 + 1 + 4 + 1) * width + 4 * width  # qkv, proj, MLP; their biases; two LayerNorms
    block = (4 * width + width) + (8 * width + 8) + width + 4  # proj_in, proj_out, final norm, start token
    assert model.parameter_count == 34 * layer + 6 * block + 2048 * width + width


def test_arguments_follow_the_training_script(tmp_path: Path) -> None:
    config = read_config(
        write_yaml(tmp_path / "c.yaml", {"img_size": 16, "blocks": 3, "layers_per_block": "1 2"})
    ).checkpoint
    assert isinstance(config.model, StarflowConfig)
    assert (config.model.num_blocks, config.model.layers_per_block) == (2, (1, 2))  # the list says how many blocks
    assert (config.model.seq_order, config.model.patch_size, config.model.channels) == ("R2L", 4, 512)
    assert (config.noise_std, config.image.mode) == (0.3, "RGB")
    one = read_config(write_yaml(tmp_path / "c.yaml", {"blocks": 3, "layers_per_block": 2, "noise_type": "uniform"}))
    assert one.checkpoint.noise_std == 0
    assert isinstance(one.checkpoint.model, StarflowConfig)
    assert (one.checkpoint.model.num_blocks, one.checkpoint.model.layers_per_block) == (3, (2,))


def test_constructor_options_follow_the_model_class(tmp_path: Path) -> None:
    constructor = {
        "in_channels": 3,
        "img_size": 8,
        "patch_size": 2,
        "channels": 64,
        "num_blocks": 2,
        "layers_per_block": [1],
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"family": "starflow", "constructor": constructor}))
    model = read_config(path).checkpoint.model
    assert isinstance(model, StarflowConfig) and model.seq_order == "R2L"
    path.write_text(json.dumps({"model": {"family": "starflow", **constructor}}))
    model = read_config(path).checkpoint.model
    assert isinstance(model, StarflowConfig) and model.seq_order == StarflowConfig.model_fields["seq_order"].default


def test_options_alone_describe_a_tarflow() -> None:
    options = ["img_size=64", "patch_size=2", "channels=768", "blocks=8", "layers_per_block=8", "dataset=imagenet"]
    config = read_config(None, options, family="tarflow", noise_std=0.05).checkpoint
    assert isinstance(config.model, TarflowConfig)
    assert config.model == TarflowConfig(
        in_channels=3, img_size=64, patch_size=2, channels=768, num_blocks=8, layers_per_block=8, num_classes=1000
    )
    assert (config.conditioning.kind, config.conditioning.num_classes) == ("class", 1000)
    assert read_config(None, [*options, "num_classes=0"], family="tarflow").checkpoint.conditioning.kind == "none"
    assert read_config(None, [*options, "nvp=false"], family="tarflow").checkpoint.model.nvp is False  # type: ignore[union-attr]


def test_patches_of_every_block() -> None:
    """Beside the published names; sides alone and with a height and a width."""
    options = ["img_size=64", "patch_size=2", "channels=768", "blocks=3", "layers_per_block=8", "num_classes=0"]
    config = read_config(None, [*options, "block_patch_sizes=[2, 4, [8, 4]]"], family="tarflow").checkpoint
    assert isinstance(config.model, TarflowConfig)
    assert config.model.block_patch_sizes == ((2, 2), (4, 4), (8, 4))
    with pytest.raises(CheckpointError, match="does not consist of 3x3"):
        read_config(None, [*options, "block_patch_sizes=[2, 4, 3]"], family="tarflow")


def test_reads_a_checkpoint_configuration(tmp_path: Path) -> None:
    out = import_case(case_of("S10_class_conditional"), tmp_path, "yaml")
    before = open_checkpoint(out)[0]
    assert read_config(out / "config.json").checkpoint == before
    changed = read_config(out / "config.json", ["soft_clip=2"], noise_std=0.2).checkpoint
    assert isinstance(changed.model, StarflowConfig) and changed.model.soft_clip == 2
    assert changed.noise_std == 0.2 and changed.conditioning == before.conditioning and changed.latent == before.latent


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temporal_causal": 2}, r"temporal_causal \(2\) asks for video"),
        ({"vid_size": "81:16"}, r"vid_size \(81:16\) asks for video"),
        ({"shallow_block_local": 1}, "shallow_block_local .* video"),
        ({"learnable_self_denoiser": 1, "rope": 0}, "learnable_self_denoiser needs rope"),
        ({"use_pretrained_lm": "gemma2_2b"}, "use_pretrained_lm .*gemma2_2b.* language model"),
        ({"chanels": 8}, "unknown option chanels; did you mean channels"),
        ({"channels": "many"}, "channels: found 'many', expected a whole number"),
        ({"layers_per_block": "2 2"}, "layers_per_block|num_blocks"),
        ({"vae": "some/other-vae"}, "autoencoder some/other-vae is not known; add --set downsample_factor="),
        ({"vae": "sd-vae", "downsample_factor": 0}, "downsample_factor: found 0, expected at least 1"),
        ({"img_size": "big"}, "img_size: found 'big', expected a number"),
        ({"text": "some/encoder"}, "text encoder some/encoder is not known; add --set txt_dim="),
        ({"text": "labels.vocab"}, "labels.vocab names classes; give their number with --classes"),
        ({"text": "labels.vocab", "txt_dim": 11}, "txt_size is 128; a class-conditional STARFlow takes 1 token"),
        ({"num_kv_heads": 5}, "num_kv_heads 5 does not divide"),
        ({"seq_order": "up"}, "seq_order: .*'L2R' or 'R2L'"),
        ({"noise_std": -1}, "noise_std: found -1, expected 0 or more"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "c.yaml", T2I | options)
    if "layers_per_block" in options:
        path.write_text(
            json.dumps({"model": {"family": "starflow", "in_channels": 4, "img_size": 8, "channels": 64} | options})
        )
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_config(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_text_encoder_is_named(tmp_path: Path) -> None:
    plain = read_config(write_yaml(tmp_path / "c.yaml", T2I)).checkpoint.text
    assert plain == TextEncoding(encoder="google/flan-t5-xl", template="{caption}")
    dressed = T2I | {"mix_aspect": 1, "fps_cond": 1, "cond_noise_level": 1, "noise_std": 0.5}
    found = read_config(write_yaml(tmp_path / "d.yaml", dressed))
    assert found.checkpoint.text is not None
    # What the published `preprocess_text` makes of "{caption}" for a square image.
    expected = "Noise Level 500:\nAn image:\n{caption}\n\n in a {aspect_ratio} aspect ratio.\n"
    assert found.checkpoint.text.template == expected
    assert not {"mix_aspect", "fps_cond", "cond_noise_level"} & set(found.ignored)
    by_class = read_config(
        write_yaml(tmp_path / "e.yaml", T2I | {"text": "labels.vocab", "txt_size": 1}), num_classes=5
    )
    assert by_class.checkpoint.text is None


def test_what_is_off_asks_for_nothing(tmp_path: Path) -> None:
    off = {"temporal_causal": 0, "learnable_self_denoiser": 0, "shallow_block_local": 0, "vid_size": None}
    assert (
        read_config(write_yaml(tmp_path / "c.yaml", T2I | off)).ignored
        == read_config(write_yaml(tmp_path / "d.yaml", T2I)).ignored
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot read the configuration: No such file"),
        ("a: [", "not YAML"),
        ("- 1", "found list, expected a mapping"),
        ("", "found NoneType, expected a mapping"),
        ("arguments: [channels]", "arguments: found 'channels', expected a list"),
        ("arguments: [0]", "arguments: found 0, expected a list"),
        ("arguments: 3", "arguments: found 3, expected a list"),
        ("constructor: 3", "constructor: found int, expected a mapping"),
        ("family: resnet\nconstructor: {}", "found the family resnet"),
        ("family: tarflow\nconstructor: {}", "in_channels: is missing"),
        ("family: tarflow\nconstructor: {vae: x}", "unknown option vae of tarflow"),
        (
            "family: tarflow\nconstructor: {dataset: cats}",
            "the number of classes of the dataset cats is not known; add --classes",
        ),
        ("model: {family: tarflow}", "in_channels: is missing"),
        (
            "model: {family: tarflow, in_channels: 1, img_size: 4, patch_size: 2, channels: 64, num_blocks: 1,"
            " layers_per_block: 1}\nnois_std: 1",
            "unknown field nois_std; did you mean noise_std",
        ),
    ],
)
def test_damaged_configurations(text: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StarflowError, match=expected) as caught:
        read_config(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_json_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_config(path)


@pytest.mark.parametrize(
    ("overrides", "family", "expected"),
    [
        (["patch_size"], "tarflow", "--set patch_size: expected option=value"),
        (["patch_size=["], "tarflow", "is not a YAML value"),
        (["patch_size=2"], None, "--set: names no family; add --family starflow or tarflow"),
    ],
)
def test_wrong_use(overrides: list[str], family: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        read_config(None, overrides, family=family)


def test_the_families_may_not_disagree(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"family": "starflow", "constructor": {}}))
    with pytest.raises(CheckpointError, match="describes a starflow model, but --family is tarflow"):
        read_config(path, family="tarflow")


def run_import(folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], *extra: str) -> tuple[int, str]:
    config = folder / "config.json"
    config.write_text(json.dumps({"family": "starflow", "constructor": case_of("S01_forward").config["constructor"]}))
    status = main(["import", str(weights), "--config", str(config), "-o", str(folder / "out"), *extra])
    return status, capsys.readouterr().err


def spoil(state: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in state.items()}
    state["blocks.1.proj_out.bias"][3] = value
    return state


@pytest.mark.parametrize(
    ("value", "extra", "expected"),
    [
        (float("nan"), (), "blocks.1.proj_out.bias holds NaN or infinity"),
        (float("inf"), ("--half",), "blocks.1.proj_out.bias holds NaN or infinity"),
        (1e6, ("--half",), "blocks.1.proj_out.bias does not fit into float16"),
    ],
)
def test_weights_that_are_no_numbers(
    value: float, extra: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(spoil(case_of("S01_forward").weights, value), weights)
    status, message = run_import(tmp_path, weights, capsys, *extra)
    assert status == 1 and message.startswith(f"starflow import: error: {weights}: {expected}")
    assert message.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.pth"]  # nothing half-written


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"img_size": 7}, r": blocks\.\d\.attn_mask: found shape \[44, 44\], expected shape \[57, 57\]; 3 other"),
        ({"txt_size": 9}, r"attn_mask: found shape \[44, 44\], expected shape \[45, 45\]"),
        ({"channels": 60}, r"blocks\.0\.proj_in\.weight: found shape \[40, 4\], expected shape \[60, 4\]"),
        ({"cond_top_only": 0}, r"blocks\.0\.proj_txt\.weight: found no such tensor, expected shape \[40, 24\]"),
        ({"layers_per_block": [1, 2, 1]}, r"blocks\.1\.attn_blocks\.1\..* found no such tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(case_of("S01_forward").weights, weights)
    overrides = [part for name, value in change.items() for part in ("--set", f"{name}={value}")]
    status, message = run_import(tmp_path, weights, capsys, *overrides)
    assert status == 1 and message.count("\n") == 1
    assert re.search(expected, message), message
    assert message.rstrip().endswith("; check --config, --family and --set")
    assert not (tmp_path / "out").exists()


def test_integer_tensors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = case_of("S01_forward").weights | {"blocks.0.proj_in.bias": torch.zeros(40, dtype=torch.int64)}
    torch.save(state, tmp_path / "weights.pth")
    status, message = run_import(tmp_path, tmp_path / "weights.pth", capsys)
    assert status == 1 and "blocks.0.proj_in.bias holds torch.int64" in message


def test_class_names_from_a_file(tmp_path: Path) -> None:
    case = case_of("T2_class_conditional")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\n")
    torch.save(case.weights, tmp_path / "w.pth")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"family": "tarflow", **case.config["constructor"]}))
    command = ["import", str(tmp_path / "w.pth"), "--config", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "out")]
    assert main([*command, "--class-names", str(names)]) == 0
    assert open_checkpoint(tmp_path / "out")[0].conditioning.class_names == ("ant", "bee", "cat", "dog", "elk")
    assert main([*command, "--force", "--class-names", "a", "b"]) == 1  # class_embed has five rows
    assert main([*command, "--force", "--classes", "0"]) == 2


def test_a_failed_replacement_keeps_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(case_of("S01_forward").weights, tmp_path / "good.pth")
    torch.save(spoil(case_of("S01_forward").weights, float("nan")), tmp_path / "bad.pth")
    assert run_import(tmp_path, tmp_path / "good.pth", capsys)[0] == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert run_import(tmp_path, tmp_path / "bad.pth", capsys, "--force")[0] == 1
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
