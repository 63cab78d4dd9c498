"""The two TensorRTs, which share one Python API: `tensorrt` for every GPU, `tensorrt_rtx` for RTX cards.

They differ in where they can build engines and in a few calls. Code probes the imported module for these differences and never
compares versions.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import get_args

from starflow.runtime.bundle.build_record import FlavourName
from starflow.runtime.plain.errors import BackendError, UsageError
from starflow.runtime.plain.install_hint import install_hint

FLAVOUR_NAMES: tuple[FlavourName, ...] = get_args(FlavourName)


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT."""

    name: FlavourName  # name in targets, build records and messages, and of the extra that installs it
    trt: ModuleType  # the imported Python module

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def named_capabilities(self) -> tuple[str, ...]:
        """Compute capabilities it builds for on any machine, such as "8.9"; empty if it builds for the present GPU only."""
        members = getattr(self.trt, "ComputeCapability", None)
        if members is None:
            return ()
        numbers = (name.removeprefix("SM") for name in members.__members__ if name.startswith("SM"))
        return tuple(f"{number[:-1]}.{number[-1]}" for number in numbers)


def load_flavour(name: str) -> Flavour:
    """Import a flavour.

    Raises:
        UsageError: there is no such flavour.
        BackendError: it is not installed, or its libraries do not load.
    """
    known = next((flavour for flavour in FLAVOUR_NAMES if flavour == name), None)
    if known is None:
        raise UsageError(f"TensorRT flavour {name!r} is not known; choose {' or '.join(FLAVOUR_NAMES)}")
    module = known.replace("-", "_")
    try:
        return Flavour(known, importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise BackendError(f"{module} is not installed: {install_hint(known)}") from None
    except (ImportError, OSError) as error:
        raise BackendError(f"{module} is installed but does not load: {' '.join(str(error).split())[:200]}") from None
