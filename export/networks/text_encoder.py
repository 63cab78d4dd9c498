"""The text encoder of a bundle: its network as a traced graph, and its tokenizer as one file."""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from starflow.export.bundle_folder import BundleFolder
from starflow.export.onnx_graph.network_weights import NetworkWeights, Tensors
from starflow.export.onnx_graph.traced_graph import trace
from starflow.export.precision import DTYPES, TextPrecision
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.bundle.network_spec import TextSpec
from starflow.runtime.plain.caption_template import ASPECT_RATIO, CAPTION
from starflow.runtime.plain.errors import DataError, ExportError, UsageError
from starflow.training.config import CheckpointConfig
from starflow.training.text.text_encoder import encoder_folder, load_encoder, load_tokenizer

STORED: dict[torch.dtype, np.dtype] = {
    torch.float32: DTYPES["fp32"],
    torch.float16: DTYPES["fp16"],
    torch.bfloat16: DTYPES["bf16"],
}
# Width to height, as captions name it.
RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "9:21", "21:9")


class TextEncoderExporter:
    """Writes the text encoder of a bundle.

    Args:
        folder: A Hugging Face folder with an encoder and its tokenizer.
        template: What stands around a caption.
        conditioning: The model's: how many tokens of which width there are to be.
        precision: Type weights are stored in; None takes that of the folder. The graph computes in float32 always: the
            activations of T5 outgrow float16.

    Raises:
        DataError: the folder cannot be read.
        ExportError: the encoder's features are not what the model takes.
    """

    def __init__(
        self, folder: Path, template: str, conditioning: ConditioningSpec, precision: TextPrecision | None
    ) -> None:
        self._template, self._tokens, self._width = template, conditioning.tokens, conditioning.width
        self._dtype = DTYPES[precision] if precision else None
        self._tokenizer = load_tokenizer(folder)
        self._model: Any = load_encoder(folder, self._tokens)  # mapped, not read
        found = self._model.config.hidden_size
        if found != self._width:
            raise ExportError(
                f"{folder}: its features have width {found}, but the model takes width {self._width}; "
                "name the text encoder that the model was trained with: --text-encoder FOLDER"
            )

    def write(self, folder: BundleFolder) -> TextSpec:
        """Write graph, weights and tokenizer."""
        folder.step("text encoder")
        tensors = self._tensors()
        _drop_values(self._model)
        ids = torch.zeros(1, self._tokens, dtype=torch.int64)
        with folder.shared_weights("text_encoder", tensors) as weights:
            traced = trace("text_encoder", self._model, _features, {"ids": ids, "mask": ids}, "features")
            graph = traced.over(weights)
        return TextSpec(
            tokenizer=folder.file(self._write_tokenizer(folder.root / "text" / "tokenizer.json")),
            encoder=folder.network(graph, folder.file(weights.file.path), "text_encoder.fp32"),
            tokens=self._tokens,
            template=self._template,
        )

    def _tensors(self) -> Tensors:
        """Parameters and buffers, each read when it is asked for."""
        values: dict[str, Tensor] = self._model.state_dict() | dict(self._model.named_buffers())
        floats = {name: partial(_as_float32, value) for name, value in values.items() if value.is_floating_point()}
        others = {name: value.numpy for name, value in values.items() if not value.is_floating_point()}

        def stored(name: str) -> Callable[[], NDArray]:
            return partial(NetworkWeights(floats, self._dtype or STORED[values[name].dtype]).matrix, name)

        return {name: stored(name) for name in floats} | others

    def _write_tokenizer(self, path: Path) -> Path:
        """The tokenizer alone, told to cut and pad: what reads it makes T tokens of any text."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        tokenizer.enable_truncation(self._tokens)
        tokenizer.enable_padding(
            length=self._tokens,
            pad_id=self._tokenizer.pad_token_id,
            pad_token=self._tokenizer.pad_token,
            pad_type_id=self._tokenizer.pad_token_type_id,
        )
        path.parent.mkdir()
        tokenizer.save(str(path))
        return path


def for_shape(text: TextSpec, height: int, width: int) -> TextSpec:
    """A text encoder's entry for images of a height and width: the template names their aspect ratio, if it names any.

    The published code trains on images of given ratios, whose sides it rounds; so the nearest ratio is the one meant.
    """
    distance = {ratio: abs(math.log(width / height) - math.log(Fraction(ratio.replace(":", "/")))) for ratio in RATIOS}
    nearest = min(RATIOS, key=distance.__getitem__)
    return text.model_copy(update={"template": text.template.replace(ASPECT_RATIO, nearest)})


def find_text_encoder(
    checkpoint: Path,
    config: CheckpointConfig,
    conditioning: ConditioningSpec,
    asked: str | None,
    precision: TextPrecision | None,
) -> TextEncoderExporter | None:
    """The text encoder of a checkpoint: the one asked for, the one in its folder, or the one its configuration names.

    `asked` is a folder, `none`, or None. Returns None where the caller of the bundle gives features, or no condition.

    Raises:
        DataError, ExportError: the encoder is not there, or does not fit.
        UsageError: the model takes no text.
    """
    if conditioning.kind != "features":
        if asked is not None and asked != "none":
            raise UsageError(
                f"--text-encoder {asked}: this model's condition is {conditioning.kind}, not text features"
            )
        return None
    name = asked or named_encoder(checkpoint, config)
    if name is None or name == "none":
        return None
    try:
        folder = encoder_folder(name)
    except DataError as error:
        mend = "; name the text encoder's folder with --text-encoder, or export without: --text-encoder none"
        raise DataError(f"{error}{'' if asked else mend}") from None
    return TextEncoderExporter(folder, config.text.template if config.text else CAPTION, conditioning, precision)


def named_encoder(checkpoint: Path, config: CheckpointConfig) -> str | None:
    """The text encoder in a checkpoint's folder, or the one its configuration names, for `encoder_folder`."""
    inside = checkpoint / "text_encoder"
    if inside.is_dir():
        return str(inside)
    return config.text.encoder if config.text else None


def _features(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states [1, T, W], zero where `mask` is."""
    hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden * mask[:, :, None]


def _as_float32(value: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = value.detach().float().numpy()
    return array


def _drop_values(model: nn.Module) -> None:
    """Leave float32 shapes of the parameters: all that tracing needs."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, device="meta")
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
