"""A published configuration as a `CheckpointConfig`.

A configuration comes as the YAML of apple/ml-starflow (a list `arguments` of one-key entries), as a plain mapping of the
same names, as `{"family": ..., "constructor": {...}}` with the options of the published model class, or as the
`config.json` of a checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from starflow.runtime.plain.caption_template import ASPECT_RATIO
from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.plain.validation import one_line
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.config import CheckpointConfig, Conditioning, ImageRange, LatentScaling, TextEncoding
from starflow.training.published.options import ARGUMENT_DEFAULTS, MODELS, OTHER_OPTIONS, Family, canonical, sort_out
from starflow.training.text.captions import caption_template
from starflow.training.yaml_text import read_override, read_yaml

# Autoencoders by a part of their name: image pixels per latent pixel, and the factor on their latents.
AUTOENCODERS = {"sd-vae": (8.0, 0.18215), "sdxl-vae": (8.0, 0.13025)}
T5_WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
TEXT_WIDTHS = {f"google/{t5}-{size}": width for t5 in ("flan-t5", "t5-v1_1") for size, width in T5_WIDTHS.items()}
TEXT_WIDTHS |= {"t5xl": 2048, "t5xxl": 4096}
MODES: dict[str, Literal["L", "RGB"]] = {"1": "L", "3": "RGB"}  # by the number of channels; others are latents
DATASET_CLASSES = {"imagenet": 1000, "imagenet64": 0, "afhq": 3}


@dataclass(frozen=True)
class PublishedConfig:
    """A published configuration in our terms."""

    checkpoint: CheckpointConfig  # what `save_checkpoint` takes
    ignored: tuple[str, ...] = ()  # options that were given and change nothing here


@dataclass(frozen=True)
class _Document:
    """A configuration before its options are understood; `form` tells whose names and defaults they follow."""

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
        path: YAML or JSON; None if the overrides hold everything.
        overrides: `option=value` each, in the published names or ours; the value is YAML.
        family: Needed if the file does not name it, except for the YAML of apple/ml-starflow.
        num_classes: Number of classes of a class-conditional model; STARFlow then takes one one-hot token.
        class_names: Names of the classes.
        noise_std: Standard deviation of the training noise, if the file does not hold it or is wrong.

    Raises:
        CheckpointError: the file is not a configuration, or asks for something that is not supported.
        UsageError: the file cannot be read, an override is malformed, or the family is unknown.
    """
    document = _Document("--set", "arguments", None, {}, {}) if path is None else _read_document(path)
    if family and document.family and family != document.family:
        raise CheckpointError(f"{document.source}: describes a {document.family} model, but --family is {family}")
    chosen = family or document.family or (None if path is None else "starflow")
    if chosen not in MODELS:
        found = "names no family" if chosen is None else f"found the family {chosen}"
        raise UsageError(f"{document.source}: {found}; add --family {' or '.join(MODELS)}")

    named = dict(read_override(text, "option=value, such as patch_size=2", UsageError) for text in overrides)
    options, ignored = sort_out(document.source, chosen, canonical(document.options) | canonical(named))
    if num_classes is None and class_names is not None:
        num_classes = len(class_names)
    rest = dict(document.rest)
    given = (ARGUMENT_DEFAULTS[chosen] if document.form == "arguments" else {}) | options
    other = {name: given.pop(name) for name in OTHER_OPTIONS[chosen] if name in given}
    if other.get("noise_type") == "uniform":
        rest["noise_std"] = 0.0  # dequantisation by one grey level, no Gaussian noise
    elif "noise_std" in other:
        rest["noise_std"] = other["noise_std"]
    if document.form != "own":
        rest["image"] = ImageRange(mode=MODES.get(str(given.get("in_channels")), "latent"))
    read = _starflow if chosen == "starflow" else _tarflow
    try:
        model = read(document.form, given, other, num_classes, rest)
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
    content = read_yaml(path, "configuration", CheckpointError)
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


def _starflow(
    form: str, given: dict[str, Any], other: Mapping[str, Any], num_classes: int | None, rest: dict[str, Any]
) -> StarflowConfig:
    """The model of STARFlow's options; what else they mean for the checkpoint goes into `rest`."""
    if "layers_per_block" in given:
        layers = given["layers_per_block"] = _layers(given["layers_per_block"])
        if form == "arguments" and len(layers) > 1:
            given["num_blocks"] = len(layers)  # the training script then does not read `blocks`
    if "vae" in other:
        factor, scale = _autoencoder(other)
        given["img_size"] = int(_number("img_size", given.get("img_size")) // factor)
        rest |= {"latent": LatentScaling(scale=scale), "image": ImageRange(mode="latent")}

    text = str(other.get("text", ""))
    by_class = num_classes is not None or text.endswith(".vocab")
    if by_class:
        given.setdefault("txt_size", 1)
        if num_classes is not None:
            given.setdefault("txt_dim", num_classes + 1)
        elif "txt_dim" not in given:
            raise ValueError(f"text {text} names classes; give their number with --classes")
    if _number("txt_size", given.get("txt_size", 0)) and "txt_dim" not in given:
        if text not in TEXT_WIDTHS:
            raise ValueError(
                f"the width of the text encoder {text or '(none named)'} is not known; add --set txt_dim=..."
            )
        given["txt_dim"] = TEXT_WIDTHS[text]
    model = StarflowConfig.model_validate(given)
    if by_class:
        if model.txt_size != 1:
            raise ValueError(f"txt_size is {model.txt_size}; a class-conditional STARFlow takes 1 token")
        rest["conditioning"] = Conditioning(kind="class", num_classes=num_classes or model.txt_dim - 1)
    elif model.txt_size:
        rest.setdefault("conditioning", Conditioning(kind="features", tokens=model.txt_size, width=model.txt_dim))
        if text:
            rest["text"] = TextEncoding(encoder=text, template=_template(other, rest.get("noise_std", 0.0)))
    return model


def _tarflow(
    form: str, given: dict[str, Any], other: Mapping[str, Any], num_classes: int | None, rest: dict[str, Any]
) -> TarflowConfig:
    """The model of TARFlow's options; what else they mean for the checkpoint goes into `rest`."""
    if num_classes is not None:
        given["num_classes"] = num_classes
    elif "dataset" in other and "num_classes" not in given:
        if other["dataset"] not in DATASET_CLASSES:
            raise ValueError(f"the number of classes of the dataset {other['dataset']} is not known; add --classes")
        given["num_classes"] = DATASET_CLASSES[other["dataset"]]
    model = TarflowConfig.model_validate(given)
    if model.num_classes and ("conditioning" not in rest or num_classes is not None):
        rest["conditioning"] = Conditioning(kind="class", num_classes=model.num_classes)
    return model


def _layers(value: Any) -> Any:
    """`2 2 24`, 8 or [2, 2, 24]: layers of every block."""
    if isinstance(value, str):
        return value.split()
    return value if isinstance(value, list | tuple) else [value]


def _template(other: Mapping[str, Any], noise_std: float) -> str:
    """What the published code writes around the captions of images."""
    return caption_template(
        aspect_ratio=ASPECT_RATIO if other.get("mix_aspect") else None,
        fps=0 if other.get("fps_cond") else None,
        noise_level=int(_number("noise_std", noise_std) * 1000) if other.get("cond_noise_level") else None,
    )


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
            f"the autoencoder {name} is not known; add --set downsample_factor=... (image pixels per latent pixel)"
            " and --set scaling_factor=... (factor on its latents)"
        )
    factor, scale = known or (1.0, 1.0)
    factor = _number("downsample_factor", other.get("downsample_factor", factor))
    if factor < 1:
        raise ValueError(f"downsample_factor: found {factor:g}, expected at least 1")
    return factor, _number("scaling_factor", other.get("scaling_factor", scale))
