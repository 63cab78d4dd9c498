"""YAML that a user wrote: a file, or the value of an option."""

import re
from pathlib import Path
from typing import Any

import yaml

from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.plain.json_text import parse_json
from starflow.runtime.plain.limits import MOST_DIGITS, MOST_JSON_BYTES, MOST_YAML_BYTES, MOST_YAML_VALUES
from starflow.runtime.plain.regular_file import read_text

_STR, _INT, _FLOAT, _TIMESTAMP, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "timestamp", "merge")
)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e3 is a number, 010 is not 8, 1:30 is not 90, and a date is a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT, _TIMESTAMP)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 2 * MOST_DIGITS:  # a sign and underscores may be among them
            raise ValueError(f"it holds a number of {len(node.value)} digits")
        return super().construct_yaml_int(node)


_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|nan))$", re.I),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)


def read_yaml(path: Path, what: str, error: type[StarflowError]) -> Any:
    """What a YAML file holds, or a JSON file if its name ends in .json.

    Args:
        error: Raised, in one line, if its content is not YAML or JSON.

    Raises:
        UsageError: the file cannot be read.
    """
    is_json = path.suffix == ".json"
    try:
        if is_json:
            return parse_json(read_text(path, MOST_JSON_BYTES))
        return _parse_yaml(read_text(path, MOST_YAML_BYTES))
    except OSError as found:
        missing = error if issubclass(error, UsageError) else UsageError
        raise missing(f"{path}: cannot read the {what}: {found.strerror}") from None
    except (yaml.YAMLError, ValueError) as found:
        raise error(f"{path}: not {'JSON' if is_json else 'YAML'}: {' '.join(str(found).split())}") from None


def read_override(text: str, expected: str, error: type[StarflowError]) -> tuple[str, Any]:
    """The name and value in the text `NAME=VALUE` of --set; `expected` and `error` are for text of another form."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise error(f"--set {text}: expected {expected}")
    try:
        return name.strip(), _parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        raise error(f"--set {text}: {value!r} is not a YAML value") from None


def _parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML.
        ValueError: it is nested too deeply, or its aliases stand for too many values, or a key is not a text, or a value is not
            of the type that its tag names.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return _constructed(loader, node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _constructed(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError, MemoryError):
        raise
    except Exception as error:  # the library's constructors take it that the text behind a tag has its form
        raise ValueError(f"a value does not fit its tag ({type(error).__name__}: {error})") from error


def _count(node: yaml.Node, counted: dict[yaml.Node, int | None]) -> int:
    """Values below a node, counted wherever an alias stands for them; `counted` keeps them, None while it goes on."""
    if node not in counted:
        counted[node] = None
        total = 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag not in (_STR, _MERGE):
                    found = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    raise ValueError(f"the key {found} is not a text; put it in quotes {_place(key)}")
                total += _count(value, counted)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(_count(each, counted) for each in node.value)
        if total > MOST_YAML_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_YAML_VALUES:,} values {_place(node)}")
        counted[node] = total
    known = counted[node]
    if known is None:
        raise ValueError(f"an alias stands for what it is in {_place(node)}")
    return known


def _place(node: yaml.Node) -> str:
    return f"(line {node.start_mark.line + 1})"
