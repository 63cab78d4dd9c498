"""How to install one of the optional parts of starflow. The package is on no index, so both ways start from a file."""


def install_hint(extra: str) -> str:
    """The command that installs an extra, such as `text`: from a clone, or from a wheel."""
    return f"pip install '.[{extra}]' in a clone of starflow, or pip install 'starflow_compiler-<version>-py3-none-any.whl[{extra}]'"
