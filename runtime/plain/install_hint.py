"""How to install one of the optional parts of starflow. The package is on no index, so both ways start from a file."""

# The mend where a build of ONNX Runtime is the wrong one, or both are installed. Uninstalling one of two removes files of the other.
REPLACE_BY_CPU_BUILD = "pip uninstall --yes onnxruntime onnxruntime-gpu; pip install onnxruntime"
REPLACE_BY_GPU_BUILD = (
    "pip uninstall --yes onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]' 'cuda-python<14'"
)


def install_hint(extra: str) -> str:
    """The command that installs an extra, such as `text`: from a clone, or from a wheel."""
    return f"pip install '.[{extra}]' in a clone of starflow, or pip install 'starflow_compiler-<version>-py3-none-any.whl[{extra}]'"


def onnxruntime_hint() -> str:
    """Which extras bring ONNX Runtime, and the command for the first of them."""
    return f"choose the extra cpu, or gpu for NVIDIA GPUs: {install_hint('cpu')}"
