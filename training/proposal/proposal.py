"""From what a folder holds and how fast this machine is to a recipe, with a reason beside each choice."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starflow.runtime.plain.errors import DataError
from starflow.training.proposal.image_survey import ImageSurvey
from starflow.training.proposal.recipe_text import Choice, recipe_values

Size = Literal["XS", "S", "M"]
PATCH = 4  # pixels: finer patches make more tokens, and time grows with them
ENOUGH_STEPS = 1500  # fewer, and a smaller model gets further
SHEETS = 12  # of samples in a run, the first one early; fewer if they would take more than their share of the time
SHEETS_SHARE = 0.15
SPARE = 0.92  # of the time goes into steps and sheets; the rest reads images and writes checkpoints


@dataclass(frozen=True)
class Widths:
    """A model of some size."""

    shallow: int  # width of the shallow blocks
    deep: int  # width of the deep block
    layers: tuple[int, ...]  # of each flow block, the deep one last
    side: int  # tokens along one side of an image, at most


SIZES: Mapping[Size, Widths] = {
    "XS": Widths(shallow=64, deep=128, layers=(1, 1, 1, 4), side=6),
    "S": Widths(shallow=128, deep=192, layers=(2, 2, 2, 6), side=8),
    "M": Widths(shallow=192, deep=384, layers=(2, 2, 2, 8), side=16),
}


@dataclass(frozen=True)
class Pace:
    """How fast a recipe trains here, by measurement."""

    seconds_per_step: float
    seconds_per_sheet: float  # a sheet of samples, with the figures on held-out images
    threads: int
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True)
class LatentShape:
    """An autoencoder's folder, and what its latents look like."""

    folder: Path
    pixels: tuple[int, int, int]  # [C, H, W] of its images
    latents: tuple[int, int, int]  # [c, h, w]


@dataclass(frozen=True)
class Encoder:
    """A text encoder, by its name in a recipe, and the width of its features."""

    name: str
    width: int


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None leaves the choice to the proposal."""

    minutes: float
    size: Size | None = None
    pixels: int | None = None
    latents: LatentShape | None = None
    encoder: Encoder | None = None


Sections = dict[str, dict[str, Choice]]
# Trains a recipe of some size, given by its values, for a few steps; None if one takes longer than so many seconds.
Measure = Callable[[Size, Mapping[str, Any], float], Pace | None]


def propose(survey: ImageSurvey, wishes: Wishes, measure: Measure) -> tuple[Size, Sections]:
    """A recipe for a folder.

    Raises:
        DataError: the images are too few or too small, or have captions that nothing encodes.
    """
    if wishes.size is None:
        sections = _without_length(survey, wishes, "S")
        pace = measure("S", recipe_values(sections), SPARE * 60 * wishes.minutes / ENOUGH_STEPS)
        if pace is not None and _steps(wishes.minutes, pace) >= ENOUGH_STEPS:
            _add_length(sections["training"], survey, wishes, pace)
            return "S", sections
    size = wishes.size or "XS"
    sections = _without_length(survey, wishes, size)
    pace = measure(size, recipe_values(sections), math.inf)
    assert pace is not None
    _add_length(sections["training"], survey, wishes, pace)
    return size, sections


def _sheets(minutes: float, pace: Pace) -> int:
    return min(SHEETS, max(2, int(SHEETS_SHARE * 60 * minutes / pace.seconds_per_sheet)))


def _steps(minutes: float, pace: Pace) -> int:
    seconds = SPARE * 60 * minutes - _sheets(minutes, pace) * pace.seconds_per_sheet
    return max(50, int(seconds / pace.seconds_per_step) // 10 * 10)


def _without_length(survey: ImageSurvey, wishes: Wishes, size: Size) -> Sections:
    """Everything but what the time decides."""
    if survey.count < 20:
        raise DataError(
            f"{survey.folder}: holds {survey.count} image(s), too few to learn from; at least 20 are needed"
        )
    batch = 32 if survey.count < 500 else 64 if survey.count < 5000 else 128
    data = _data(survey, wishes, size)
    sections = {
        "model": _model(survey, wishes, size, data),
        "data": data,
        "training": {
            "steps": Choice(ENOUGH_STEPS),
            "batch_size": Choice(min(batch, survey.count // 2), f"for {survey.count:,} images"),
            "learning_rate": Choice(1.0e-3),
            "noise_std": Choice(0.2 if wishes.latents else 0.1, "keeps the density finite, and stays visible as grain"),
            "flip": Choice(not survey.grey, _flip_reason(survey)),
        },
    }
    if survey.classes or survey.captions:
        what = "class" if survey.classes else "caption"
        sections["training"]["label_drop"] = Choice(0.1, f"one image in ten has no {what}, so that guidance works")
        sections["training"]["sample_guidance"] = Choice(1.0, f"sheets follow the {what} more closely; 0: not at all")
    return sections


def _flip_reason(survey: ImageSurvey) -> str:
    if survey.grey:
        return "grey images are often characters, which have a left and a right; true: mirror every other image"
    return "mirrors every other image; false if left and right differ"


def _data(survey: ImageSurvey, wishes: Wishes, size: Size) -> dict[str, Choice]:
    folder = {"kind": Choice("folder"), "path": Choice(str(survey.folder), survey.described())}
    mode = Choice("L", "none of the images that were looked at has a colour") if survey.grey else Choice("RGB")
    if wishes.latents:
        channels, side, _ = wishes.latents.pixels
        return {
            **folder,
            "mode": Choice("L" if channels == 1 else "RGB", "as the autoencoder's images"),
            "size": Choice(side, "the size of the autoencoder's images"),
            "autoencoder": Choice(str(wishes.latents.folder), "the flow learns its latents"),
            **_captions(survey, wishes),
        }
    side = wishes.pixels or min(SIZES[size].side * PATCH, survey.side // PATCH * PATCH)
    if side < PATCH:
        raise DataError(f"{survey.folder}: images of {survey.side} pixels are too small; {PATCH} are needed")
    crop = "" if survey.square == 1 else ", and the middle is cut out"
    reason = f"shorter sides are scaled to this{crop}; {(side // PATCH) ** 2} tokens"
    if side < survey.side:
        reason += ". Larger pictures need latents: `starflow init --autoencoder`, or more time and --size M"
    return {**folder, "mode": mode, "size": Choice(side, reason), **_captions(survey, wishes)}


def _captions(survey: ImageSurvey, wishes: Wishes) -> dict[str, Choice]:
    if survey.captions is None:
        return {}
    if wishes.encoder is None:
        raise DataError(
            f"{survey.captions}: captions need a text encoder; name a Hugging Face folder with --encoder, or move the file away"
            " to train without them"
        )
    return {
        "captions": Choice(str(survey.captions)),
        "encoder": Choice(wishes.encoder.name, "turns captions into features, once"),
        "tokens": Choice(
            min(64, 2 + 3 * survey.longest_caption // 2), f"the longest caption has {survey.longest_caption} words"
        ),
    }


def _model(survey: ImageSurvey, wishes: Wishes, size: Size, data: Mapping[str, Choice]) -> dict[str, Choice]:
    widths = SIZES[size]
    channels, side = (1 if data["mode"].value == "L" else 3), data["size"].value
    patch = PATCH
    if wishes.latents:
        channels, side, _ = wishes.latents.latents
        patch = 1 if side <= widths.side or side % 2 else 2
    if side % patch:
        raise DataError(f"--pixels {side}: expected a multiple of {patch}")
    tokens = (side // patch) ** 2
    model = {
        "family": Choice("starflow"),
        "in_channels": Choice(channels),
        "img_size": Choice(side),
        "patch_size": Choice(patch, f"{tokens} tokens of {channels * patch**2} values"),
        "channels": Choice(widths.shallow, "width of the shallow blocks"),
        "top_block_channels": Choice(widths.deep, "width of the deep block, which does most of the work"),
        "head_dim": Choice(64),
        "num_blocks": Choice(len(widths.layers)),
        "layers_per_block": Choice(list(widths.layers), f"size {size}"),
    }
    if survey.classes:
        model["txt_size"] = Choice(1, "the class is one token in front of the sequence")
        model["txt_dim"] = Choice(len(survey.classes) + 1, f"{len(survey.classes)} classes and the null class")
    elif survey.captions and wishes.encoder:
        model["txt_size"] = data["tokens"]
        model["txt_dim"] = Choice(wishes.encoder.width, "width of the encoder's features")
    else:
        model["txt_size"] = Choice(0, "no classes and no captions")
    return {
        **model,
        "cond_top_only": Choice(True, "only the deep block sees the condition"),
        "seq_order": Choice("L2R", "the deep block reads from the upper left"),
        **{field: Choice(True) for field in ("rope", "sos", "use_softplus", "use_final_norm")},
        "soft_clip": Choice(4),
    }


def _add_length(training: dict[str, Choice], survey: ImageSurvey, wishes: Wishes, pace: Pace) -> None:
    """What follows from the speed of this machine."""
    steps, sheets = _steps(wishes.minutes, pace), _sheets(wishes.minutes, pace)
    every = max(10, math.ceil(steps / sheets))  # rounded down, the last two sheets would be of nearly the same step
    batch = training["batch_size"].value
    epochs = steps * batch / survey.count
    training["steps"] = Choice(
        steps, f"{wishes.minutes:g} minutes at {pace.seconds_per_step:.3f} s a step, measured here; {epochs:.0f} epochs"
    )
    training["warmup_steps"] = Choice(min(200, max(10, steps // 10)))
    # The average reaches over the last tenth of a short run.
    training["ema_decay"] = Choice(
        round(min(0.999, 1 - 10 / steps), 4), "the checkpoint is an average over the last steps"
    )
    training["threads"] = Choice(pace.threads, "the fastest here, by measurement")
    training["precision"] = Choice(pace.precision, "the faster one here, by measurement")
    training["evaluate_every"] = Choice(every, "held-out bits/dim")
    training["sample_every"] = Choice(every, f"a sheet of samples, {sheets} of them in the run")
    training["checkpoint_every"] = Choice(every)
