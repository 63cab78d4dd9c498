"""The manual names everything a manifest holds, the recipe reference every field with its default, and links lead somewhere.

The generated pages show every command, package and module.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from starflow.runtime.bundle.build_record import published_build_schema
from starflow.runtime.bundle.manifest_file import published_manifest_schema
from starflow.runtime.bundle.network_build import published_networks_schema
from starflow.training.autoencoder.config import AutoencoderObjective, KlConfig, NoisyDecoderConfig, TinyConfig
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.continuous.config import ContinuousMlpConfig, ContinuousTransformerConfig
from starflow.training.continuous.objective_config import CfmConfig, OtCfmConfig, WeightedCfmConfig
from starflow.training.data.source import (
    Digits8Source,
    FolderSource,
    HuggingFaceSource,
    NpzSource,
    PointsSource,
    WebDatasetSource,
)
from starflow.training.recipe import Training
from starflow.training.start import AdapterConfig, Start


def names_in(page: Path) -> set[str]:
    """Everything that stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("file", "current"),
    [
        ("manifest-3.json", published_manifest_schema),
        ("build-1.json", published_build_schema),
        ("networks-1.json", published_networks_schema),
    ],
)
def test_published_schemas_are_those_of_the_code(
    repository: Path, file: str, current: Callable[[], dict[str, Any]]
) -> None:
    assert json.loads((repository / "runtime/schema" / file).read_text()) == current(), "write it again: make schema"


@pytest.mark.parametrize(
    ("older", "added"),
    [
        (1, {"batches", "AutoregressiveBatch", "ContinuousBatch"}),
        (
            2,
            {"patch", "cuda", "int8-row", "int8-row-wide", "timing", "Timing", "BatchTiming"}
            | {"students", "StudentSpec", "StudentFigures", "QuantizedStudent", "student", "Student"},
        ),
    ],  # fields, and values of fields
    ids=["2", "3"],
)
def test_a_schema_adds_some_fields_to_the_one_before_and_nothing_else(
    repository: Path, older: int, added: set[str]
) -> None:
    """Older releases read bundles that do without what is new, so no other field may appear in those."""

    def is_added(part: Any) -> bool:
        """Whether an entry of a list is new: a value of a field, or a kind of part."""
        name = part.get("$ref", "").removeprefix("#/$defs/") if isinstance(part, dict) else part
        return isinstance(name, str) and name in added

    def without(part: Any) -> Any:
        if isinstance(part, list):
            return [without(each) for each in part if not is_added(each)]
        if not isinstance(part, dict):
            return part
        left_out = {"schema_version", *added}
        texts = {name for name in ("title", "description") if isinstance(part.get(name), str)}
        return {name: without(value) for name, value in part.items() if name not in left_out | texts}

    before, after = (
        json.loads((repository / f"runtime/schema/manifest-{number}.json").read_text()) for number in (older, older + 1)
    )
    assert before != after
    assert without(before) == without(after)


@pytest.mark.parametrize(
    ("file", "page", "some"),
    [
        ("manifest-3.json", "docs/bundle.md", {"guidance_anneal", "patch_order"}),
        ("build-1.json", "docs/tensorrt.md", {"compute_capabilities", "profiles"}),
        ("networks-1.json", "docs/tensorrt.md", {"compute_capabilities", "precision", "mixed"}),
    ],
)
def test_manuals_name_every_field_and_value_of_a_schema(repository: Path, file: str, page: str, some: set[str]) -> None:
    schema = json.loads((repository / "runtime/schema" / file).read_text())
    wanted: set[str] = set()
    for part in (schema, *schema["$defs"].values()):
        for name, field in part.get("properties", {}).items():
            wanted |= {name, *(value for value in field.get("enum", ()) if isinstance(value, str))}
    assert wanted - names_in(repository / page) == set()
    assert some <= wanted, "the schema was read"


def rows_of(page: Path) -> dict[str, list[str]]:
    """Default cells of the recipe reference by field name; a row may name several fields, and a field stand in several."""
    rows: dict[str, list[str]] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5:
            for name in re.findall(r"`(\w+)`", cells[1]):
                rows.setdefault(name, []).append(cells[2])
    return rows


def default_in(cell: str) -> Any:
    if cell in ("", "none"):
        return None
    value = yaml.safe_load(cell.strip("`"))
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


@pytest.mark.parametrize(
    "model",
    [
        *(Training, FolderSource, NpzSource, WebDatasetSource, HuggingFaceSource, Digits8Source, PointsSource),
        *(Start, AdapterConfig, StarflowConfig, TarflowConfig),
        *(ContinuousTransformerConfig, ContinuousMlpConfig, CfmConfig, OtCfmConfig, WeightedCfmConfig),
        *(TinyConfig, KlConfig, AutoencoderObjective, NoisyDecoderConfig),
    ],
)
def test_recipe_reference_has_every_field_with_its_default(repository: Path, model: type[BaseModel]) -> None:
    rows = rows_of(repository / "docs/training.md")
    for name, field in model.model_fields.items():
        if name in ("kind", "family"):
            continue
        assert name in rows, f"{model.__name__}.{name} is not in docs/training.md"
        default = None if field.default is PydanticUndefined else field.default
        if default is None:  # a required field, or one whose default follows from others: a word, not a value
            continue
        default = list(default) if isinstance(default, tuple) else default
        assert default in [default_in(cell) for cell in rows[name]], f"{model.__name__}.{name}: {rows[name]}"


def test_links_of_the_readme_lead_somewhere(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert len(targets) > 5
    assert [target for target in targets if not (repository / target).exists()] == []


@pytest.fixture(scope="module")
def generator(repository: Path) -> ModuleType:
    """The MkDocs hook that makes pages from the sources."""
    spec = importlib.util.spec_from_file_location("generate_api", repository / "docs/generate_api.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_on_the_page_with_its_summary(repository: Path, generator: ModuleType) -> None:
    page = generator.fill((repository / "docs/api/command_line.md").read_text(encoding="utf-8"))
    commands = entry_points(group="starflow.commands")
    assert len(commands) > 5
    for command in commands:
        (summary,) = re.findall(rf"\| \[`starflow {command.name}`\]\(#starflow-{command.name}\) \| (.+) \|", page)
        assert summary == (command.load().__doc__ or "").partition("\n")[0]
        assert re.search(rf"### starflow {command.name}\n.+?```console\nstarflow {command.name}\b", page, re.DOTALL)


def test_every_public_module_is_on_one_page_of_the_api(repository: Path, generator: ModuleType) -> None:
    overview = generator.fill((repository / "docs/api/index.md").read_text(encoding="utf-8"))
    shown = []
    for package in generator.packages():
        assert f"[`{package}`]({Path(generator.page_of(package)).name})" in overview
        shown += re.findall("^::: (.+)$", generator.package_page(package), re.MULTILINE)
    folders = ("calibration", "export", "runtime", "training")
    files = [file.relative_to(repository) for folder in folders for file in (repository / folder).rglob("*.py")]
    public = [file for file in files if not file.stem.startswith("_") and "commands" not in file.parts]
    assert sorted(shown) == sorted(".".join(("starflow", *file.with_suffix("").parts)) for file in public)


def test_links_to_the_glossary_name_its_entries(repository: Path) -> None:
    entries = re.findall("^###? (.+)$", (repository / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {entry.lower().replace(" ", "-") for entry in entries}
    linked = {
        anchor
        for page in (repository / "README.md", *(repository / "docs").glob("*.md"))
        for anchor in re.findall(r"glossary\.md#([\w-]+)", page.read_text(encoding="utf-8"))
    }
    assert len(linked) > 10
    assert linked <= anchors


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/bundle.md"])
def test_paths_that_pages_name_exist(repository: Path, page: str) -> None:
    folders = "runtime|export|calibration|training|tests|benchmarks|examples|docs"
    paths = [name for name in names_in(repository / page) if re.fullmatch(rf"({folders})/[\w./-]*", name)]
    assert paths
    assert [path for path in paths if not (repository / path).exists()] == []
