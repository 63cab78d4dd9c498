"""Packages that are installed and cannot work together, or not with the driver: a line for each, which says what to change."""

from collections.abc import Iterator

from starflow.runtime.backends.cuda.driver import too_old_driver
from starflow.runtime.diagnostics.machine import GPU_PROVIDERS, Machine, Package, TensorRT
from starflow.runtime.plain.install_hint import REPLACE_BY_CPU_BUILD, REPLACE_BY_GPU_BUILD


def version_conflicts(facts: Machine) -> Iterator[str]:
    """What to change on a machine."""
    yield from _two_builds(facts)
    yield from _driver_too_old(facts)
    yield from _two_releases_of_tensorrt(facts)
    yield from _two_releases_of_cuda(facts)
    if facts.onnxruntime.lacks_cudnn and any(each.name == GPU_PROVIDERS[0] and each.loads for each in facts.providers):
        yield "libcudnn.so.9 is missing, and convolutions, as of autoencoders, need it: pip install 'onnxruntime-gpu[cuda,cudnn]'"


def _two_builds(facts: Machine) -> Iterator[str]:
    """Both put their files into the folder `onnxruntime`."""
    if len(facts.onnxruntime.builds) > 1:
        names = " and ".join(facts.onnxruntime.builds)
        mend = REPLACE_BY_GPU_BUILD if facts.gpus.found else REPLACE_BY_CPU_BUILD
        yield f"{names} are both installed and overwrite each other's files: {mend}"


def _driver_too_old(facts: Machine) -> Iterator[str]:
    """A driver serves the CUDA it is for and older ones."""
    built: tuple[Package | TensorRT, ...] = (*facts.packages, *facts.tensorrt)
    for each in built:
        if each.cuda and (old := too_old_driver(each.name, each.cuda)):
            yield f"{each.name} {each.version}: {old}"


def _two_releases_of_tensorrt(facts: Machine) -> Iterator[str]:
    """ONNX Runtime's TensorRT provider is linked with one major release."""
    wanted = facts.onnxruntime.tensorrt
    found = next((flavour.version for flavour in facts.tensorrt if flavour.name == "tensorrt"), None)
    if wanted and found and _major(found) != wanted:
        yield (
            f"--provider tensorrt needs TensorRT {wanted}, and tensorrt {found} is installed: use --provider cuda, or engines "
            f"(starflow build), or pip install 'tensorrt<{wanted + 1}' and build the engines again"
        )


def _two_releases_of_cuda(facts: Machine) -> Iterator[str]:
    """Packages of both install cuDNN's libraries under one name."""
    onnxruntime, torch = (next(p for p in facts.packages if p.name == name) for name in ("onnxruntime", "torch"))
    if onnxruntime.cuda and torch.cuda and _major(onnxruntime.cuda) != _major(torch.cuda):
        yield (
            f"torch {torch.version} is for CUDA {torch.cuda} and onnxruntime-gpu {onnxruntime.version} for CUDA {onnxruntime.cuda}, "
            "and both install libcudnn: take a build of torch for the same CUDA, or an environment for each"
        )


def _major(version: str) -> int:
    return int(version.partition(".")[0])
