"""The kernels of a built engine, as TensorRT's log lists them: what a run launches can be read without a GPU.

At its most verbose, a builder ends with a line for each layer of the engine ("Engine Layer Information"). A layer is one kernel, a
copy, or shape arithmetic on the host. Each optimisation profile has layers of its own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+)")
STREAM = re.compile(r"StreamId: (\d+)")
PROFILE = re.compile(r"\[profile (\d+)\]")
REGION = re.compile(r"_myl(\d+)_\d+$")  # ends the name of a layer of one compiled region; a region serves one profile
ON_HOST = {"shape_call"}
UPLOADS = {"ShapeHostToDevice"}
REFORMATS = {"Reformat"}
# What a kernel's name says it does: operations of four letters in a row. One that does only these moves values about.
OPERATIONS = re.compile(r"^__myl_((?:[A-Z][a-z0-9]+)+)")
MOVES = {"Conc", "Copy", "Move", "Repl", "Resh", "Slic", "Tran"}
ATTENTION = "_mha_"  # in the name of a fused attention


@dataclass(frozen=True)
class EngineLayer:
    """One line of the list."""

    name: str
    kind: str  # TensorRT's, such as `gemm`
    profile: int  # index of the optimisation profile
    stream: int  # number of the stream, counted from 0; those above 0 are auxiliary

    @property
    def moves_only(self) -> bool:
        """Whether it is a kernel that computes nothing and only moves values about."""
        found = OPERATIONS.match(self.name)
        return found is not None and set(re.findall("[A-Z][a-z0-9]+", found[1])) <= MOVES


@dataclass(frozen=True)
class KernelCount:
    """What one run at one optimisation profile launches."""

    kernels: int  # in all, those that only move values included
    per_layer: int | None  # of them between two fused attentions; None where fewer than two are fused
    attentions: int  # fused ones
    moves: int  # kernels that only move values about
    reformats: int  # copies into another layout
    uploads: int  # copies of host values to the device
    streams: int


def kernel_counts(messages: Sequence[str]) -> tuple[KernelCount, ...]:
    """The figures of an engine, profile by profile, from its builder's verbose messages; empty if they list no layer."""
    layers = read_layers(messages)
    profiles = sorted({layer.profile for layer in layers})
    return tuple(count_kernels(layer for layer in layers if layer.profile == profile) for profile in profiles)


def count_kernels(layers: Iterable[EngineLayer]) -> KernelCount:
    """The figures of the layers of one profile."""
    found = list(layers)
    others = ON_HOST | UPLOADS | REFORMATS
    kernels = [layer for layer in found if layer.kind not in others]
    attentions = [index for index, layer in enumerate(kernels) if ATTENTION in layer.name]
    gaps = [after - before for before, after in pairwise(attentions)]
    return KernelCount(
        kernels=len(kernels),
        per_layer=max(gaps, default=None),
        attentions=len(attentions),
        moves=sum(layer.moves_only for layer in kernels),
        reformats=sum(layer.kind in REFORMATS for layer in found),
        uploads=sum(layer.kind in UPLOADS for layer in found),
        streams=len({layer.stream for layer in found if layer.kind not in ON_HOST}),
    )


def read_layers(messages: Sequence[str]) -> list[EngineLayer]:
    """The layers of the engine that a builder's verbose messages list, in the order of their runs; empty if they list none."""
    lines = [line for message in messages for line in message.splitlines() if line.startswith("Name: ")]
    matches = [(line, found) for line in lines if (found := LAYER.match(line))]
    profiles: dict[str, int] = {}  # of each region: some of its layers name the profile, others do not
    for line, found in matches:
        if (region := REGION.search(found["name"])) and (profile := PROFILE.search(line)):
            profiles[region[1]] = int(profile[1])
    return [_layer(line, found, profiles) for line, found in matches]


def _layer(line: str, found: re.Match[str], profiles: dict[str, int]) -> EngineLayer:
    region, profile, stream = REGION.search(found["name"]), PROFILE.search(line), STREAM.search(line)
    index = profiles.get(region[1], 0) if region else int(profile[1]) if profile else 0
    return EngineLayer(found["name"], found["kind"], index, int(stream[1]) if stream else 0)
