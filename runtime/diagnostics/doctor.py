"""What this machine can do with starflow, and what to install for the rest: one table of probes."""

from collections.abc import Callable
from dataclasses import dataclass

from starflow.runtime.backends.cuda.device import INSTALL_CUDA_PYTHON
from starflow.runtime.bundle.build_record import FlavourName
from starflow.runtime.diagnostics.machine import CPU_PROVIDER, GPU_PROVIDERS, Machine, TensorRT, this_machine
from starflow.runtime.diagnostics.version_conflicts import version_conflicts
from starflow.runtime.plain.install_hint import REPLACE_BY_GPU_BUILD, install_hint, onnxruntime_hint

NO_GPU = "needs an NVIDIA GPU"


@dataclass(frozen=True)
class Ability:
    """Something one may want to do: whether it works here, with what, or what would make it work."""

    what: str
    possible: bool
    how: str


@dataclass(frozen=True)
class Diagnosis(Machine):
    """Everything `starflow doctor` says: what was found on this machine, and what that makes possible."""

    abilities: tuple[Ability, ...]
    conflicts: tuple[str, ...]  # versions that do not fit each other or the driver, and what to change


@dataclass(frozen=True)
class Probe:
    """A row of the table."""

    what: str  # what one may want to do
    found: Callable[[Machine], list[str]]  # names what it works with here; empty if it does not work
    hint: Callable[[Machine], str]  # says what would make it work
    needs_gpu: bool = False  # whether nothing helps without a GPU

    def try_on(self, facts: Machine) -> Ability:
        """What the facts say about it."""
        found = self.found(facts)
        hint = self.hint(facts)
        if self.needs_gpu and not facts.gpus.found:
            hint = facts.gpus.problem if facts.gpus.driver and facts.gpus.problem else NO_GPU
        return Ability(self.what, bool(found), ", ".join(found) or hint)


def examine() -> Diagnosis:
    """Look at this machine; never raises because something is missing."""
    facts = this_machine()
    abilities = tuple(probe.try_on(facts) for probe in PROBES)
    return Diagnosis(**vars(facts), abilities=abilities, conflicts=tuple(version_conflicts(facts)))


def _extra(what: str, name: str) -> Probe:
    def missing(facts: Machine) -> list[str] | None:
        return next((list(extra.missing) for extra in facts.extras if extra.name == name), None)

    def hint(facts: Machine) -> str:
        lacking = missing(facts)
        return install_hint(name) + (f" (missing: {', '.join(lacking)})" if lacking else "")

    return Probe(what, lambda facts: [f"[{name}] is installed"] if missing(facts) == [] else [], hint)


def _providers(*names: str) -> Callable[[Machine], list[str]]:
    return lambda facts: [provider.name for provider in facts.providers if provider.name in names and provider.loads]


def _gpu_providers(facts: Machine) -> list[str]:
    """Those that work; CUDA's runs are captured through cuda-python."""
    able = GPU_PROVIDERS if facts.packages[-1].version else GPU_PROVIDERS[1:]
    return _providers(*able)(facts)


def _gpu_provider_hint(facts: Machine) -> str:
    if facts.packages[0].version is None:
        return _onnxruntime_hint(facts)
    for provider in facts.providers:
        if provider.name == GPU_PROVIDERS[0]:
            if provider.loads:
                return _cuda_hint(facts)
            return f"{provider.name} does not load{f': {provider.problem}' if provider.problem else ''}"
    return REPLACE_BY_GPU_BUILD


def _cuda_hint(facts: Machine) -> str:
    return f"cuda-python {facts.packages[-1].note}: {INSTALL_CUDA_PYTHON}"


def _onnxruntime_hint(facts: Machine) -> str:
    package = facts.packages[0]
    if package.version is None:
        return package.note if facts.onnxruntime.builds else onnxruntime_hint()
    names = " ".join(build.partition(" ")[0] for build in facts.onnxruntime.builds) or "onnxruntime"
    return f"pip install --force-reinstall {names}"


def _flavours(usable: Callable[[Machine, TensorRT], bool]) -> Callable[[Machine], list[str]]:
    return lambda facts: [f"{each.name} {each.version}" for each in facts.tensorrt if usable(facts, each)]


def _builds_here(facts: Machine, flavour: TensorRT) -> bool:
    # A flavour that names the capabilities it can build for builds for no other; one that names none takes any GPU.
    capability = facts.gpus.found[0].compute_capability if facts.gpus.found else None
    return bool(capability and not flavour.problem and (not flavour.capabilities or capability in flavour.capabilities))


def _runs_here(facts: Machine, flavour: TensorRT) -> bool:
    return bool(facts.gpus.found) and flavour.problem is None and facts.packages[-1].version is not None


def _builds_ahead(facts: Machine) -> list[str]:
    able = (flavour for flavour in facts.tensorrt if flavour.capabilities)
    return [f"{each.name} {each.version}, for compute capability {', '.join(each.capabilities)}" for each in able][:1]


def _flavour_hint(name: FlavourName) -> Callable[[Machine], str]:
    return lambda facts: next(each.problem or install_hint(name) for each in facts.tensorrt if each.name == name)


def _engine_hint(facts: Machine) -> str:
    return _flavour_hint("tensorrt")(facts) if facts.packages[-1].version else _cuda_hint(facts)


PROBES = (
    _extra("train a model", "train"),
    _extra("export bundles and verify them", "export"),
    _extra("put encoders into bundles", "encoders"),
    Probe("build engines ahead of time for RTX cards", _builds_ahead, _flavour_hint("tensorrt-rtx")),
    Probe("build engines for this machine's GPU", _flavours(_builds_here), _flavour_hint("tensorrt"), needs_gpu=True),
    Probe(
        "run bundles on ONNX Runtime, CPU",
        _providers(CPU_PROVIDER),
        _onnxruntime_hint,
    ),
    _extra("sample from captions", "text"),
    Probe("run bundles on ONNX Runtime, GPU", _gpu_providers, _gpu_provider_hint, needs_gpu=True),
    Probe("run TensorRT engines", _flavours(_runs_here), _engine_hint, needs_gpu=True),
)
