"""Compares the networks beside the flow with PyTorch's: text encoder, autoencoder, denoisers, students.

Torch is imported only when there is something to compare with: verifying without it does not need it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from starflow.export.tensorrt.network_inputs import student_noise, usual_weights
from starflow.export.verification.agreement import Measurement, compare_one
from starflow.export.verification.routes import NotRun
from starflow.export.verification.subject import Part
from starflow.export.verification.tolerances import Precision, Tolerances
from starflow.export.verification.torch_reference import TorchReference
from starflow.runtime.autoregressive.students import student_of, student_tokens
from starflow.runtime.autoregressive.tokens import patchify
from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import DenoiserSpec, TextSpec
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.networks.caption_encoder import CaptionEncoder
from starflow.runtime.networks.denoising import Denoiser
from starflow.runtime.plain.caption_template import fill_template
from starflow.runtime.plain.errors import CheckpointError, DataError, UsageError
from starflow.runtime.traces.case import Case

CAPTIONS = ("", "a red apple", "Two cats, and a dog (black & white): 3 friends!")


def text_encoder_folder(bundle: Bundle, checkpoint: Path | None, asked: str | None) -> Path | NotRun | None:
    """The folder of the text encoder a bundle was exported with, or why it is not compared; None where there is none.

    It is the folder that is asked for, else the one that the checkpoint holds or names.

    Raises:
        UsageError: a folder is asked for, and the bundle has no text encoder.
        DataError: the folder that is asked for holds no text encoder.
    """
    if bundle.manifest.text is None:
        if asked:
            raise UsageError(f"--text-encoder {asked}: this bundle has no text encoder")
        return None
    unknown = NotRun("text encoder", "it has no reference here; name --text-encoder")
    if not asked and not checkpoint:
        return unknown

    from starflow.export.networks.text_encoder import named_encoder
    from starflow.training.checkpoint import open_checkpoint
    from starflow.training.text.text_encoder import encoder_folder

    if asked:
        return encoder_folder(asked)
    assert checkpoint is not None
    name = named_encoder(checkpoint, open_checkpoint(checkpoint)[0])
    try:
        return encoder_folder(name) if name else unknown
    except DataError as error:
        return NotRun("text encoder", f"{error} (--text-encoder)")


def autoencoder_folder(bundle: Bundle, checkpoint: Path | None, asked: Path | None) -> Path | NotRun | None:
    """The folder of the autoencoder a bundle was exported with, or why it is not compared; None where there is none.

    It is the folder that is asked for, else the one in the checkpoint.

    Raises:
        UsageError: a folder is asked for, and the bundle has no autoencoder.
    """
    if bundle.manifest.autoencoder is None:
        if asked:
            raise UsageError(f"--autoencoder {asked}: this bundle has no autoencoder")
        return None
    if checkpoint and not asked:
        from starflow.training.checkpoint import AUTOENCODER

        inside = checkpoint / AUTOENCODER
        asked = inside if inside.is_dir() else None
    return asked or NotRun("autoencoder", "it has no reference here; name --checkpoint or --autoencoder")


def student_folders(bundle: Bundle, asked: Sequence[Path]) -> tuple[dict[int, Path], list[NotRun]]:
    """The folders of a bundle's students by flow block, and those students that are not compared.

    Raises:
        UsageError: a folder is of a flow block that has no student in the bundle, or of the same one as another folder.
        CheckpointError: it does not hold a student, or one that was distilled from another checkpoint than the bundle's.
    """
    manifest, found = bundle.manifest, dict[int, Path]()
    specs = {spec.block: spec for spec in manifest.students} if isinstance(manifest, AutoregressiveManifest) else {}
    for folder in asked:
        from starflow.training.students.folder import read_student

        config = read_student(folder).config
        if config.block not in specs or config.block in found:
            has = "another folder is of this block" if config.block in found else "this bundle has none of this block"
            raise UsageError(f"--student {folder}: is of flow block {config.block}; {has}")
        if config.teacher != specs[config.block].teacher:
            raise CheckpointError(f"{folder}: was distilled from another checkpoint than the student in {bundle.root}")
        found[config.block] = folder
    missing = "it has no reference here; name --student"
    return found, [NotRun(student_name(block), missing) for block in specs if block not in found]


def student_name(block: int) -> str:
    """How reports call it."""
    return f"student of flow block {block}"


def compare_student(
    bundle: Bundle, sessions: NetworkSessions, block: int, folder: Path, case: Case, tolerances: Tolerances
) -> Iterator[Measurement]:
    """Compare the tokens that a student makes of the first batch of a case with those of the one in `folder`.

    First the student in float32, then those in 8 bits, each of a variant.
    """
    import torch

    from starflow.training.students.folder import read_student

    manifest, student = bundle.autoregressive, read_student(folder)
    spec, batch = student_of(manifest, block), manifest.batch
    first = None if case.condition is None else case.condition[:batch]
    noise = np.ascontiguousarray(student_noise(bundle, spec, first, case.null_condition, case.seed))
    conditions, weights = case.conditions(manifest.conditioning).part(np.arange(batch)), usual_weights(spec, batch)
    given = conditions.tokens if conditions.labels is None else conditions.labels
    with torch.inference_mode():
        condition = None if given is None else torch.from_numpy(np.ascontiguousarray(given))
        expected = student(torch.from_numpy(noise), condition, torch.from_numpy(weights)).numpy()
    name, part = student_name(block), Part("the tokens")
    found = student_tokens(sessions.run, spec, noise, conditions, weights)
    yield compare_one(name, "student", part, expected, found, tolerances["fp32", "student"])
    for variant in manifest.variants:
        if any(own.block == block for own in variant.students):
            quantised = student_of(manifest.run_by(variant.name), block)
            found = student_tokens(sessions.run, quantised, noise, conditions, weights)
            yield compare_one(
                f"{name}, {variant.name}", "student", part, expected, found, tolerances["int8", "student"]
            )


def denoiser_name(spec: DenoiserSpec) -> str:
    """How reports call it."""
    return f"denoiser {spec.kind}-{spec.precision}"


def compare_denoiser(
    bundle: Bundle,
    sessions: NetworkSessions,
    spec: DenoiserSpec,
    reference: TorchReference,
    case: Case,
    x: NDArray,
    tolerances: Tolerances,
) -> tuple[Measurement, NDArray]:
    """Compare what a denoiser adds to the reference's samples of a case, x [N, C, H, W], with what PyTorch's adds.

    The denoised samples [N, C, H, W] are returned as well.
    """
    manifest = bundle.autoregressive
    conditions = encode_conditions(manifest.conditioning, len(x), case.condition, None, guided=False)
    found = Denoiser(bundle, sessions, spec)(x, conditions, 1.0)
    expected, added = (patchify(y - x, manifest.model) for y in (reference.denoise(spec.kind, x, case), found))
    part, tolerance = Part("the image"), tolerances[spec.precision, "denoise"]
    return compare_one(denoiser_name(spec), "denoise", part, expected, added, tolerance), found


def compare_text_encoder(
    bundle: Bundle, sessions: NetworkSessions, folder: Path, tolerances: Tolerances
) -> Measurement:
    """Compare the features of a few captions, [captions, T, width], with those of the encoder in `folder`."""
    from starflow.training.text.text_encoder import encode

    text = bundle.manifest.text
    assert text is not None
    found = CaptionEncoder(bundle, sessions, text).encode(CAPTIONS)
    expected: NDArray[np.float32] = np.zeros_like(found)
    encoded = encode([fill_template(text.template, caption) for caption in CAPTIONS], folder, text.tokens)
    for row, features in zip(expected, encoded.features, strict=True):
        row[: len(features)] = features
    tolerance = tolerances[_precision(bundle, text), "text"]
    return compare_one("text encoder", "text", Part("the features"), expected, found, tolerance)


def _precision(bundle: Bundle, text: TextSpec) -> Precision:
    """Whether weights may have been rounded to half precision."""
    with safe_open(bundle.path(text.encoder.weights), "pt") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return "fp16" if "F16" in types else "fp32"


def compare_autoencoder(
    bundle: Bundle, sessions: NetworkSessions, folder: Path, data: NDArray, tolerances: Tolerances
) -> Iterator[Measurement]:
    """Compare pixels of samples, decoded, and the latents of those pixels, encoded; a token is a pixel or a latent pixel.

    `data` are the reference's samples, [N, C, h, w].

    Raises:
        CheckpointError: `folder` is not that of the autoencoder the bundle was exported with.
    """
    import torch

    from starflow.training.autoencoder.folder import open_autoencoder

    spec, image = bundle.manifest.autoencoder, bundle.manifest.image
    assert spec is not None
    source, graphs = open_autoencoder(folder), Autoencoder(bundle, sessions, spec)
    if len(spec.decoders) > 1 and source.noisy is None:
        raise CheckpointError(
            f"{folder}: has no decoder for noisy latents, but {bundle.root} has one; name its autoencoder with --autoencoder"
        )
    latents = torch.from_numpy(data / np.float32(image.scale) + np.float32(image.shift))
    pairs: dict[str, tuple[NDArray, NDArray]] = {}
    with torch.inference_mode():
        pixels = source.autoencoder.decode(latents)
        pairs["decoder"] = pixels.numpy(), graphs.decode(data, noisy=False)
        if source.noisy is not None and len(spec.decoders) > 1:
            pairs["noisy decoder"] = source.noisy.decode(latents).numpy(), graphs.decode(data, noisy=True)
        if spec.encoder:
            encoded = (source.autoencoder.encode(pixels).numpy() - image.shift) * image.scale
            pairs["encoder"] = encoded, graphs.encode(pixels.numpy())
    part, tolerance = (
        Part("the image", unit="pixel"),
        tolerances["fp32", "pixels"],
    )  # weights are stored as in the folder
    for name, pair in pairs.items():
        expected, found = (np.ascontiguousarray(x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)) for x in pair)
        yield compare_one(name, "pixels", part, expected, found, tolerance)
