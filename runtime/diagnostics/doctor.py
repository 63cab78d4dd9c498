"""What this machine can do with starflow, and what to install for the rest."""

from collections.abc import Callable
from dataclasses import dataclass

from starflow.runtime.backends.tensorrt.flavour import FLAVOUR_NAMES
from starflow.runtime.bundle.build_record import FlavourName
from starflow.runtime.diagnostics.machine import (
    CPU_PROVIDER,
    GPU_PROVIDERS,
    Extra,
    Gpus,
    Machine,
    Package,
    Provider,
    TensorRT,
    cuda_python_package,
    find_gpus,
    listed_providers,
    onnxruntime_package,
    optional_extras,
    tensorrt_flavour,
    this_machine,
    torch_package,
)
from starflow.runtime.plain.install_hint import install_hint

NO_GPU = "needs an NVIDIA GPU"


@dataclass(frozen=True)
class Ability:
    """Something one may want to do: whether it works here, with what, or what would mend it."""

    what: str
    possible: bool
    how: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything `starflow doctor` says."""

    machine: Machine
    packages: tuple[Package, ...]
    providers: tuple[Provider, ...]
    tensorrt: tuple[TensorRT, ...]
    gpus: Gpus
    extras: tuple[Extra, ...]
    abilities: tuple[Ability, ...]


def examine() -> Diagnosis:
    """Look at this machine; never raises because something is missing."""
    providers = tuple(listed_providers())
    flavours = tuple(tensorrt_flavour(name) for name in FLAVOUR_NAMES)
    cuda = cuda_python_package()
    gpus = find_gpus(cuda)
    extras = tuple(optional_extras())
    packages = (onnxruntime_package(), torch_package(), cuda)
    return Diagnosis(
        machine=this_machine(),
        packages=packages,
        providers=providers,
        tensorrt=flavours,
        gpus=gpus,
        extras=extras,
        abilities=(
            _from_extra("train a model", extras, "train"),
            _from_extra("export bundles and verify them", extras, "export"),
            _from_extra("put encoders into bundles", extras, "encoders"),
            _build_ahead(flavours),
            _build_here(flavours, gpus),
            _run_on_cpu(providers),
            _from_extra("sample from captions", extras, "text"),
            _run_on_gpu(providers, gpus),
            _run_engines(flavours, gpus, cuda),
        ),
    )


def _from_extra(what: str, extras: tuple[Extra, ...], name: str) -> Ability:
    extra = next((extra for extra in extras if extra.name == name), None)
    if extra is None or extra.missing:
        lacking = f" (missing: {', '.join(extra.missing)})" if extra else ""
        return Ability(what, False, install_hint(name) + lacking)
    return Ability(what, True, f"[{extra.name}] is installed")


def _build_ahead(flavours: tuple[TensorRT, ...]) -> Ability:
    what = "build engines ahead of time for RTX cards"
    able = next((flavour for flavour in flavours if flavour.capabilities), None)
    if able is None:
        return Ability(what, False, _reason(flavours, "tensorrt-rtx"))
    return Ability(what, True, f"{able.name} {able.version}, for compute capability {', '.join(able.capabilities)}")


def _build_here(flavours: tuple[TensorRT, ...], gpus: Gpus) -> Ability:
    what = "build engines for this machine's GPU"
    if not gpus.found:
        return Ability(what, False, NO_GPU)
    gpu = gpus.found[0]

    def builds(flavour: TensorRT) -> bool:
        # A flavour that names the capabilities it can build for builds for no other; one that names none takes any GPU.
        return not flavour.problem and (not flavour.capabilities or gpu.compute_capability in flavour.capabilities)

    return _first(what, flavours, builds, _reason(flavours, "tensorrt"))


def _run_on_cpu(providers: tuple[Provider, ...]) -> Ability:
    what = "run bundles on ONNX Runtime, CPU"
    if any(provider.name == CPU_PROVIDER and provider.loads for provider in providers):
        return Ability(what, True, CPU_PROVIDER)
    return Ability(what, False, "pip install --force-reinstall onnxruntime")


def _run_on_gpu(providers: tuple[Provider, ...], gpus: Gpus) -> Ability:
    what = "run bundles on ONNX Runtime, GPU"
    listed = [provider for provider in providers if provider.name in GPU_PROVIDERS]
    loaded = [provider.name for provider in listed if provider.loads]
    if loaded:
        return Ability(what, True, ", ".join(loaded))
    if not gpus.found:
        return Ability(what, False, NO_GPU)
    if not listed:
        return Ability(what, False, "pip uninstall onnxruntime; pip install onnxruntime-gpu")
    names = ", ".join(provider.name for provider in listed)
    return Ability(what, False, f"{names} does not load: pip install 'onnxruntime-gpu[cuda,cudnn]'")


def _run_engines(flavours: tuple[TensorRT, ...], gpus: Gpus, cuda: Package) -> Ability:
    what = "run TensorRT engines"
    if not gpus.found:
        return Ability(what, False, NO_GPU)
    if cuda.version is None:
        return Ability(what, False, f"cuda-python {cuda.note}: {install_hint('tensorrt')}")
    return _first(what, flavours, lambda flavour: flavour.problem is None, _reason(flavours, "tensorrt"))


def _first(what: str, flavours: tuple[TensorRT, ...], fits: Callable[[TensorRT], bool], otherwise: str) -> Ability:
    fitting = [f"{flavour.name} {flavour.version}" for flavour in flavours if fits(flavour)]
    return Ability(what, bool(fitting), ", ".join(fitting) or otherwise)


def _reason(flavours: tuple[TensorRT, ...], name: FlavourName) -> str:
    problem = next(flavour.problem for flavour in flavours if flavour.name == name)
    return problem or install_hint(name)
