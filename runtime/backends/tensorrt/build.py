"""The build of a bundle that a GPU can run, or the command that makes one."""

from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.tensorrt.flavour import FLAVOUR_NAMES, Flavour, load_flavour
from starflow.runtime.bundle.build_record import BuildRecord, TargetConfig, read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError, BundleError


def choose_build(bundle: Bundle, variant: str | None, gpu: Gpu) -> tuple[BuildRecord, Flavour]:
    """The build to run on a GPU, and the TensorRT that runs it.

    Builds made with the installed release come first, then the order of variants in the manifest counts. `variant` None takes any.

    Raises:
        BundleError: there is no such variant, or another release than the installed one made its build.
        BackendError: no build fits the GPU, or the TensorRT it needs is not installed.
    """
    order = [each.name for each in bundle.manifest.variants]
    if variant is not None:
        order = [bundle.variant(variant, "portable").name]
    builds = [
        record
        for record in read_builds(bundle)
        if record.variant in order and gpu.compute_capability in record.compute_capabilities
    ]
    if not builds:
        wanted = f" of {variant}" if variant else ""
        wanted += f" at {bundle.shape[0]}x{bundle.shape[1]}" if bundle.shape else ""
        wanted += f" in batches of {bundle.batch}" if bundle.batch else ""
        raise BackendError(
            f"{bundle.root}: has no engines{wanted} for {gpu.name}, compute capability {gpu.compute_capability}; "
            f"build them: starflow build {bundle.root} --target {target_for(gpu)}"
        )
    runnable: list[tuple[BuildRecord, Flavour]] = []
    missing: BackendError | None = None
    for record in builds:
        try:
            runnable.append((record, load_flavour(record.flavour)))
        except BackendError as error:
            missing = error
    if missing and not runnable:
        raise missing
    record, flavour = min(runnable, key=lambda pair: (pair[0].version != pair[1].version, order.index(pair[0].variant)))
    check_version(bundle, record, flavour, record.command(bundle))
    return record, flavour


def check_version(bundle: Bundle, record: TargetConfig, flavour: Flavour, command: str) -> None:
    """Raise BundleError, with the command that builds again, unless an installed TensorRT has the flavour and release of a build."""
    if (record.flavour, record.version) != (flavour.name, flavour.version):
        raise BundleError(
            f"{bundle.root}: the engines of {record.target} were built by {record.flavour} {record.version} and load only "
            f"there; {flavour.name} {flavour.version} is installed; build again: {command}"
        )


def rebuild_advice(bundle: Bundle, record: BuildRecord) -> str:
    """The advice for engines that cannot be used although everything they were built from is unchanged."""
    return f"build again: {record.command(bundle)} --force"


def target_for(gpu: Gpu) -> str:
    """The target for this machine: an installed flavour that names the GPU, else the flavour that builds for any GPU."""
    for name in FLAVOUR_NAMES:
        try:
            named = load_flavour(name).named_capabilities
        except BackendError:
            continue
        if gpu.compute_capability in named:
            return f"{name}:{gpu.compute_capability}"
    return "tensorrt"
