"""Published configurations: what apple/ml-starflow and apple/ml-tarflow call their options, as a `CheckpointConfig`.

A configuration comes as the YAML of apple/ml-starflow (a list `arguments` of one-key entries), as a plain mapping of the
same names, as `{"family": ..., "constructor": {...}}` with the options of the published model class, or as the
`config.json` of a checkpoint.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from starflow.runtime.plain.caption_template import ASPECT_RATIO
from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.plain.validation import one_line
from starflow.training.config import (
    CheckpointConfig,
    Conditioning,
    ImageRange,
    LatentScaling,
    StarflowConfig,
    TarflowConfig,
    TextEncoding,
)
from starflow.training.text.captions import caption_template

Family = Literal["starflow", "tarflow"]
MODELS: dict[str, type[StarflowConfig] | type[TarflowConfig]] = {"starflow": StarflowConfig, "tarflow": TarflowConfig}

# What the training scripts call options of the model class.
ALIASES = {"blocks": "num_blocks", "channel_size": "in_channels"}

# What the training scripts set when an argument is absent.
ARGUMENT_DEFAULTS: dict[str, dict[str, Any]] = {
    "starflow": {
        "img_size": 32,
        "in_channels": 3,
        "patch_size": 4,
        "channels": 512,
        "num_blocks": 4,
        "layers_per_block": 8,
        "seq_order": "R2L",
        "noise_std": 0.3,
    },
    # img_size has two defaults (64 to train, 32 to sample), so it has to be said.
    "tarflow": {
        "in_channels": 3,
        "patch_size": 4,
        "channels": 512,
        "num_blocks": 4,
        "layers_per_block": 8,
        "noise_std": 0.05,
    },
}
# What the model classes set when an option is absent, where our own configuration sets another value.
CONSTRUCTOR_DEFAULTS: dict[str, dict[str, Any]] = {"starflow": {"seq_order": "R2L"}, "tarflow": {}}

# Options that decide something and are no option of the model class.
OTHER_OPTIONS = {
    "starflow": (
        *("vae", "text", "noise_std", "noise_type", "downsample_factor", "scaling_factor"),
        *("mix_aspect", "fps_cond", "cond_noise_level"),
    ),
    "tarflow": ("dataset", "noise_std", "noise_type"),
}
UNSUPPORTED = {
    "vid_size": "video",
    "temporal_causal": "video",
    "shallow_block_local": "video",
    "local_attn_window": "video",
    "use_pretrained_lm": "a top block from a language model",
}
# Known names that change nothing here, by the reason.
_IGNORED = {
    "of training": "acc batch_size compile dry_run epoch_length epochs fp8 fsdp fsdp_text_encoder grad_clip grad_skip "
    "gradient_checkpoint gradient_checkpoint_mlp latent_norm_regularization logdir loss_scaling lr min_lr "
    "model_config_path resume resume_epoch resume_path sample_freq save_every train_seed use_8bit_adam "
    "use_checkpoint use_checkpoint_mlp wandb_name warmup_steps",
    "of data": "caption_column data dataset drop_image drop_label finetuned_vae last_frame_cond no_flip "
    "secondary_batch_size secondary_dataset secondary_img_size secondary_ratio secondary_vid_size "
    "vae_adapter vae_decoder_factor video_to_video wds",
    "of sampling": "aspect_ratio attn_temp cfg ckpt_file denoising_batch_size disable_learnable_denoiser guide_top "
    "jacobi jacobi_block_size jacobi_max_iter jacobi_th num_samples out_fps sample_batch_size seed "
    "self_denoising_lr target_noise_std",
    "accepted by the published code and not used": "adaln noise_embed_denoiser nvp use_mm_attn",
    "of a denoiser of videos": "denoiser_window",
}
IGNORED = frozenset(name for names in _IGNORED.values() for name in names.split())

# Autoencoders by a part of their name: image pixels per latent pixel, and the factor on their latents.
AUTOENCODERS = {"sd-vae": (8.0, 0.18215), "sdxl-vae": (8.0, 0.13025)}
T5_WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
TEXT_WIDTHS = {f"google/{t5}-{size}": width for t5 in ("flan-t5", "t5-v1_1") for size, width in T5_WIDTHS.items()}
TEXT_WIDTHS |= {"t5xl": 2048, "t5xxl": 4096}
DATASET_CLASSES = {"imagenet": 1000, "imagenet64": 0, "afhq": 3}


@dataclass(frozen=True)
class PublishedConfig:
    """A published configuration in our terms.

    Attributes:
        checkpoint: What `save_checkpoint` takes.
        ignored: Names that were given and change nothing here.
    """

    checkpoint: CheckpointConfig
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Document:
    """A configuration before its options are understood: `form` says whose names and defaults they follow."""

    source: str
    form: Literal["arguments", "constructor", "own"]
    family: str | None
    options: dict[str, Any]
    rest: dict[str, Any]  # of a checkpoint's config.json: everything but the model


def read_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    family: Family | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    noise_std: float | None = None,
) -> PublishedConfig:
    """Read a published configuration.

    Args:
        path: YAML or JSON; None when the overrides say everything.
        overrides: `option=value` each, in the published names or ours; the value is YAML.
        family: Needed where the file does not say it; the YAML of apple/ml-starflow need not.
        num_classes: A class-conditional model of so many classes; STARFlow then takes one one-hot token.
        class_names: Their names.
        noise_std: Standard deviation of the training noise, where the file does not say it or is wrong.

    Raises:
        CheckpointError: the file cannot be read as a configuration, or asks for something unsupported.
        UsageError: an override is malformed, or the family is unknown.
    """
    document = _Document("--set", "arguments", None, {}, {}) if path is None else _read_document(path)
    if family and document.family and family != document.family:
        raise CheckpointError(f"{document.source}: describes a {document.family} model, --family says {family}")
    chosen = family or document.family or (None if path is None else "starflow")
    if chosen not in MODELS:
        found = "no family is named" if chosen is None else f"found the family {chosen}"
        raise UsageError(f"{document.source}: {found}; say --family {' or '.join(MODELS)}")

    options = _canonical(document.options) | _canonical(dict(_parse_override(text) for text in overrides))
    options, ignored = _sort_out(document.source, chosen, options)
    if num_classes is None and class_names is not None:
        num_classes = len(class_names)
    rest = dict(document.rest)
    model: StarflowConfig | TarflowConfig
    try:
        if chosen == "starflow":
            model, rest = _starflow(document.form, options, rest, num_classes)
        else:
            model, rest = _tarflow(document.form, options, rest, num_classes)
        if class_names is not None:
            rest["conditioning"] = Conditioning.model_validate(rest.get("conditioning", {})).model_copy(
                update={"class_names": tuple(class_names)}
            )
        if noise_std is not None:
            rest["noise_std"] = noise_std
        return PublishedConfig(CheckpointConfig(model=model, **rest), ignored)
    except ValidationError as error:
        known = (*MODELS[chosen].model_fields, *CheckpointConfig.model_fields)
        raise CheckpointError(f"{document.source}: {one_line(error, known)}") from None
    except ValueError as error:
        raise CheckpointError(f"{document.source}: {error}") from None


def _read_document(path: Path) -> _Document:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise CheckpointError(f"{path}: not {kind}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected a mapping of options")
    source, rest = str(path), {}
    form: Literal["arguments", "constructor", "own"] = "arguments"
    if "arguments" in content:
        options = _merge(path, content["arguments"])
    elif "constructor" in content:
        form, options = "constructor", _mapping(path, content, "constructor")
    elif "model" in content:
        form, options = "own", _mapping(path, content, "model")
        rest = {str(name): value for name, value in content.items() if name != "model"}
    else:
        options = content
        form = "own" if {"family", "in_channels"} <= content.keys() else "arguments"
    family = options.pop("family", None) or content.get("family")
    return _Document(source, form, None if family is None else str(family), options, rest)


def _mapping(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content[key]
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key}: found {type(value).__name__}, expected a mapping of options")
    return dict(value)


def _merge(path: Path, arguments: Any) -> dict[str, Any]:
    """Entries of an `arguments` list; the last of a name counts, as on a command line."""
    if isinstance(arguments, dict):
        return dict(arguments)
    entries = arguments if isinstance(arguments, list) else [arguments]
    strange = [entry for entry in entries if not isinstance(entry, dict)]
    if strange:
        raise CheckpointError(f"{path}: arguments: found {strange[0]!r:.40}, expected a list of `name: value` entries")
    return {name: value for entry in entries for name, value in entry.items()}


def _parse_override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set {text}: expected option=value, such as patch_size=2")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {text}: {value!r} is not a YAML value") from None


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Our names for the options; a null value counts as absent."""
    return {ALIASES.get(name, name): value for name, value in options.items() if value is not None}


def _sort_out(source: str, family: str, options: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Part the options that decide something from those that are known and do not; refuse all others."""
    fields = {*MODELS[family].model_fields, *OTHER_OPTIONS[family]} - {"family"}
    taken, ignored = {}, []
    for name, value in options.items():
        if name in fields:
            taken[name] = value
        elif name in UNSUPPORTED:
            if value and value != "none":
                raise CheckpointError(
                    f"{source}: {name} ({value}) asks for {UNSUPPORTED[name]}, which is not supported yet"
                )
        elif name in IGNORED:
            ignored.append(name)
        else:
            near = difflib.get_close_matches(str(name), [*fields, *ALIASES], n=1)
            hint = f"; did you mean {near[0]}?" if near else f" of {family}"
            raise CheckpointError(f"{source}: unknown option {name}{hint}")
    return taken, tuple(ignored)


def _starflow(
    form: str, options: dict[str, Any], rest: dict[str, Any], num_classes: int | None
) -> tuple[StarflowConfig, dict[str, Any]]:
    """The model of STARFlow's options, and what else they say of the checkpoint."""
    given = _defaults(form, "starflow") | options
    other = {name: given.pop(name) for name in OTHER_OPTIONS["starflow"] if name in given}
    if "layers_per_block" in given:
        layers = given["layers_per_block"] = _layers(given["layers_per_block"])
        if form == "arguments" and len(layers) > 1:
            given["num_blocks"] = len(layers)  # the training script then does not ask for `blocks`

    if "vae" in other:
        factor, scale = _autoencoder(other)
        given["img_size"] = int(_number("img_size", given.get("img_size")) // factor)
        rest |= {"latent": LatentScaling(scale=scale), "image": ImageRange(mode="latent")}
    elif form != "own":
        rest["image"] = _image(given.get("in_channels"))
    _noise(other, rest)

    text = str(other.get("text", ""))
    by_class = num_classes is not None or text.endswith(".vocab")
    if by_class:
        given.setdefault("txt_size", 1)
        if num_classes is not None:
            given.setdefault("txt_dim", num_classes + 1)
        elif "txt_dim" not in given:
            raise ValueError(f"text {text} names classes; say how many with --classes")
    if _number("txt_size", given.get("txt_size", 0)) and "txt_dim" not in given:
        if text not in TEXT_WIDTHS:
            raise ValueError(
                f"the width of the text encoder {text or '(none named)'} is not known; say --set txt_dim=..."
            )
        given["txt_dim"] = TEXT_WIDTHS[text]
    model = StarflowConfig.model_validate(given)
    if by_class and model.txt_size != 1:
        raise ValueError(f"txt_size is {model.txt_size}; a class-conditional STARFlow takes 1 token")
    if by_class:
        rest["conditioning"] = Conditioning(kind="class", num_classes=num_classes or model.txt_dim - 1)
    elif model.txt_size and "conditioning" not in rest:
        rest["conditioning"] = Conditioning(kind="features", tokens=model.txt_size, width=model.txt_dim)
    if model.txt_size and text and not by_class:
        rest["text"] = TextEncoding(encoder=text, template=_template(other, rest.get("noise_std", 0.0)))
    return model, rest


def _tarflow(
    form: str, options: dict[str, Any], rest: dict[str, Any], num_classes: int | None
) -> tuple[TarflowConfig, dict[str, Any]]:
    """The model of TARFlow's options, and what else they say of the checkpoint."""
    given = _defaults(form, "tarflow") | options
    other = {name: given.pop(name) for name in OTHER_OPTIONS["tarflow"] if name in given}
    if num_classes is not None:
        given["num_classes"] = num_classes
    elif "dataset" in other and "num_classes" not in given:
        if other["dataset"] not in DATASET_CLASSES:
            raise ValueError(f"the classes of the dataset {other['dataset']} are not known; say --classes")
        given["num_classes"] = DATASET_CLASSES[other["dataset"]]
    _noise(other, rest)
    if form != "own":
        rest["image"] = _image(given.get("in_channels"))
    model = TarflowConfig.model_validate(given)
    if model.num_classes and ("conditioning" not in rest or num_classes is not None):
        rest["conditioning"] = Conditioning(kind="class", num_classes=model.num_classes)
    return model, rest


def _defaults(form: str, family: str) -> dict[str, Any]:
    if form == "own":
        return {}
    return ARGUMENT_DEFAULTS[family] if form == "arguments" else CONSTRUCTOR_DEFAULTS[family]


def _layers(value: Any) -> Any:
    """`2 2 24`, 8 or [2, 2, 24]: layers of every block."""
    if isinstance(value, str):
        return value.split()
    return value if isinstance(value, list | tuple) else [value]


def _noise(other: Mapping[str, Any], rest: dict[str, Any]) -> None:
    if other.get("noise_type") == "uniform":
        rest["noise_std"] = 0.0  # dequantisation by one grey level, no Gaussian noise
    elif "noise_std" in other:
        rest["noise_std"] = other["noise_std"]


def _template(other: Mapping[str, Any], noise_std: float) -> str:
    """What the published code puts around the captions of images."""
    return caption_template(
        aspect_ratio=ASPECT_RATIO if other.get("mix_aspect") else None,
        fps=0 if other.get("fps_cond") else None,
        noise_level=int(_number("noise_std", noise_std) * 1000) if other.get("cond_noise_level") else None,
    )


def _image(channels: Any) -> ImageRange:
    modes: dict[str, Literal["L", "RGB"]] = {"1": "L", "3": "RGB"}
    return ImageRange(mode=modes.get(str(channels), "latent"))


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: found {value!r:.40}, expected a number") from None


def _autoencoder(other: Mapping[str, Any]) -> tuple[float, float]:
    """Image pixels per latent pixel, and the factor on the latents, of the autoencoder `vae`."""
    name = str(other["vae"])
    known = next((figures for part, figures in AUTOENCODERS.items() if part in name), None)
    if known is None and not {"downsample_factor", "scaling_factor"} <= other.keys():
        raise ValueError(
            f"the autoencoder {name} is not known; say --set downsample_factor=... (image pixels per latent pixel)"
            " and --set scaling_factor=... (factor on its latents)"
        )
    factor, scale = known or (1.0, 1.0)
    factor = _number("downsample_factor", other.get("downsample_factor", factor))
    if factor < 1:
        raise ValueError(f"downsample_factor: found {factor:g}, expected 1 or more")
    return factor, _number("scaling_factor", other.get("scaling_factor", scale))
