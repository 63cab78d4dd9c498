"""MkDocs hook: the command reference and the API pages, made from pyproject.toml and the sources, so that they are never out of date.

`mkdocs.yml` names this file under `hooks`. It reads docstrings without importing the code. Every sub-package gets a page, and
mkdocstrings fills it; a page that exists in docs/ has a comment where the generated part goes.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAVIGATION = "Python API"  # the section of `nav` that gets the pages


def source_of(module: str) -> Path:
    """The file of a module or package, such as `starflow.runtime.plans`."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def documentation(module: str) -> str:
    """A module's docstring."""
    return inspect.cleandoc(ast.get_docstring(ast.parse(source_of(module).read_text(encoding="utf-8"))) or "")


def summary(module: str) -> str:
    """The first paragraph of a module's docstring, in one line."""
    return documentation(module).partition("\n\n")[0].replace("\n", " ")


def commands() -> dict[str, str]:
    """The module of each command, by its name."""
    return dict(sorted(PROJECT["project"]["entry-points"]["starflow.commands"].items()))


def packages() -> list[str]:
    """The packages that have a page. Those of commands have none: `starflow COMMAND --help` documents a command."""
    return [name for name in PROJECT["tool"]["setuptools"]["packages"] if not name.endswith(".commands")]


def modules(package: str) -> list[str]:
    """The public modules that lie directly in a package."""
    files = sorted(source_of(package).parent.glob("*.py"))
    return [f"{package}.{file.stem}" for file in files if not file.stem.startswith("_")]


def page_of(package: str) -> str:
    """Where a package's page lies in the site's sources."""
    return f"api/{package.removeprefix('starflow.')}.md"


def package_page(package: str) -> str:
    """The page of a package: what it is for, its modules, and everything public in them."""
    found = modules(package)
    parts = [f"# `{package}`", summary(package)]
    if found:
        rows = [f"| [`{name.rpartition('.')[2]}`](#{name}) | {summary(name)} |" for name in found]
        parts += ["\n".join(["| module | |", "|---|---|", *rows]), *(f"::: {name}" for name in found)]
    return "\n\n".join(parts) + "\n"


def package_table() -> str:
    """A row for each package."""
    rows = (f"| [`{name}`]({Path(page_of(name)).name}) | {summary(name)} |" for name in packages())
    return "\n".join(["| package | |", "|---|---|", *rows])


def command_table() -> str:
    """A row for each command."""
    rows = (f"| [`starflow {name}`](#starflow-{name}) | {summary(module)} |" for name, module in commands().items())
    return "\n".join(["| command | |", "|---|---|", *rows])


def command_sections() -> str:
    """What each command says of itself in its `--help`, before its options."""
    return "\n\n".join(command_section(name, documentation(module)) for name, module in commands().items())


def command_section(name: str, text: str) -> str:
    """One of them: paragraphs, and the examples as a console would show them."""
    description, _, examples = re.split(r"(?m)^(Examples?:)", f"{text}\nExample:", maxsplit=1)
    shown = inspect.cleandoc(examples.removesuffix("Example:").lstrip("\n"))
    block = f"\n\n```console\n{shown}\n```" if shown else ""
    return f"### starflow {name}\n\n{description.strip()}{block}"


GENERATED = {
    "<!-- generated: packages -->": package_table,
    "<!-- generated: commands -->": command_table,
    "<!-- generated: command sections -->": command_sections,
}


def fill(markdown: str) -> str:
    """A page with its generated parts in the place of the comments."""
    for place, make in GENERATED.items():
        if place in markdown:
            markdown = markdown.replace(place, make())
    return markdown


def navigation() -> Iterator[dict[str, object]]:
    """The entries of the API section: for each folder its own page, then one for each of its sub-packages."""
    for folder in sorted({".".join(name.split(".")[:2]) for name in packages()}):
        pages = [name for name in packages() if name == folder or name.startswith(f"{folder}.")]
        yield {folder: [{name.removeprefix("starflow."): page_of(name)} for name in pages]}


def on_config(config: "MkDocsConfig") -> None:
    """Add the pages to the navigation."""
    section = next(entry[NAVIGATION] for entry in config.nav or [] if NAVIGATION in entry)
    section.extend(navigation())


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages themselves."""
    from mkdocs.structure.files import File

    for package in packages():
        files.append(File.generated(config, page_of(package), content=package_page(package)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Fill in the generated parts of a page."""
    return fill(markdown)
