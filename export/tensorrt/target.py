"""What engines are built for: `--target tensorrt-rtx:8.9,12.0`, or `tensorrt` for the GPU that is present."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from starflow.runtime.bundle.build_record import target_name
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.errors import BackendError, UsageError

# Since which compute capability a GPU computes in a precision, and what to build for older ones.
SINCE = {"bf16": ((8, 0), "fp16"), "fp8": ((8, 9), "int8")}


@dataclass(frozen=True)
class Target:
    """A TensorRT and the GPUs its engines run on."""

    flavour: Flavour  # the TensorRT that builds
    compute_capabilities: tuple[str, ...]  # such as "8.9", in ascending order, none twice

    @property
    def name(self) -> str:
        """`tensorrt-rtx-8.9_12.0`."""
        return target_name(self.flavour.name, self.compute_capabilities)

    def check_variant(self, variant: Variant) -> None:
        """Raise UsageError, which says what can be built, unless every GPU of the target can compute a variant."""
        if variant.lowering != "portable":
            raise UsageError(
                f"--variant {variant.name}: only ONNX Runtime on a CPU runs this variant; name a portable one"
            )
        since, instead = SINCE.get(variant.precision, ((0, 0), ""))
        older = [c for c in self.compute_capabilities if _numbers(c) < since]
        if older:
            raise UsageError(
                f"--variant {variant.name}: GPUs of compute capability {older[0]} cannot compute in {variant.precision}; "
                f"leave {older[0]} out ({since[0]}.{since[1]} and later can) or build a variant in {instead}"
            )


def parse_target(text: str) -> Target:
    """Read a target and see that it can be built for here.

    Args:
        text: A flavour, then, where the flavour builds for named GPUs, a colon and their compute capabilities.

    Raises:
        UsageError: unknown flavour, or compute capabilities that are malformed or not the flavour's.
        BackendError: the flavour is not installed, or it builds for the GPU that is present and there is none.
    """
    name, colon, listed = text.partition(":")
    asked = listed.split(",") if colon else []
    for capability in asked:
        if not re.fullmatch(r"\d+\.\d", capability):
            raise UsageError(
                f"--target {text}: {capability!r} is not a compute capability; give numbers such as {name}:8.9,12.0"
            )
    flavour = load_flavour(name)
    return Target(flavour, choose_capabilities(flavour, sorted(set(asked), key=_numbers)))


def choose_capabilities(flavour: Flavour, asked: Sequence[str]) -> tuple[str, ...]:
    """The compute capabilities to build for, of those a flavour can build for here.

    Raises:
        UsageError: the flavour lacks one, takes none or needs some.
        BackendError: it builds for the GPU that is present and there is none.
    """
    available = flavour.named_capabilities
    if not available:
        if asked:
            raise UsageError(
                f"--target {flavour.name}:{','.join(asked)}: {flavour.name} builds for the GPU of this machine; leave the "
                "compute capabilities out"
            )
        return (_present(flavour),)
    if not asked:
        raise UsageError(
            f"--target {flavour.name}: name the compute capabilities to build for, such as {flavour.name}:8.9; "
            f"choose from {', '.join(available)}"
        )
    for capability in asked:
        if capability not in available:
            raise UsageError(
                f"--target {flavour.name}: cannot build for compute capability {capability}, only for {', '.join(available)}; RTX does not "
                "cover data-centre GPUs such as Hopper (9.0): build on that GPU with --target tensorrt"
            )
    return tuple(asked)


def _present(flavour: Flavour) -> str:
    try:
        return Gpu().compute_capability
    except BackendError as error:
        reason = str(error).partition(";")[0]
        raise BackendError(
            f"--target {flavour.name}: builds for the GPU of this machine, which cannot be used: {reason}; build "
            "on the machine that will run it, or for RTX cards on any machine with --target tensorrt-rtx:8.9"
        ) from None


def _numbers(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)
