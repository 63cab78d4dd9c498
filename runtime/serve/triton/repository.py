"""A model repository for Triton: a model that answers with images, and one that streams previews."""

import contextlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.copying import copy_bundle
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.own_folder import FolderKind
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.serve.triton.config import Hosting, config_text
from starflow.runtime.serve.triton.settings import BUNDLE, PLAN, Settings

RECORD = "starflow.json"
REPOSITORY = FolderKind("Triton model repository of starflow", RECORD, frozenset({"triton_models", "starflow"}))
MODEL = '''\
"""Written by `starflow triton`: the model is in starflow, which has to be installed in the environment of this process."""

from starflow.runtime.serve.triton.python_model import PythonModel as TritonPythonModel  # noqa: F401
'''


def models_of(name: str, manifest: Manifest) -> dict[str, bool]:
    """The models of a repository by name, and whether they stream previews: only of images, and of several flow blocks."""
    has_previews = manifest.output == "images" and len(getattr(manifest, "blocks", ())) > 1
    return {name: False, **({f"{name}-previews": True} if has_previews else {})}


def write_repository(
    destination: Path,
    name: str,
    bundle: Bundle,
    hosting: Hosting,
    settings: Settings,
    *,
    plan: BaseModel | None = None,
    link: bool = False,
    replace: bool = False,
    report: Report = no_report,
) -> list[str]:
    """Write a repository, whole or not at all, and return the names of its models.

    Each model holds the bundle, of its variants only the one that the settings name, so that the folder is all that a server
    needs. The second model links to the files of the first.

    Args:
        bundle: As `Bundle.open` returns it, with all shapes and batch sizes.
        plan: A plan of the user, for settings that name `PLAN`.
        link: See `copy_bundle`.
        replace: Whether an existing repository of starflow gives way.
        report: Told of every file of the bundle.

    Raises:
        UsageError: `destination` may not be replaced or written, or files cannot be linked there.
        StarflowError: the system refuses to write, or a file of the bundle is not what was exported.
    """
    manifest = bundle.at_shape(settings.shape).at_batch(settings.batch).manifest
    models = models_of(name, manifest)
    with atomic_folder(destination, REPOSITORY, replace=replace, source=bundle.folder) as folder:
        first = folder / name / "1" / BUNDLE
        for model, previews in models.items():
            own = folder / model / "1"
            own.mkdir(parents=True)
            (own / "model.py").write_text(MODEL, encoding="utf-8")
            if plan is not None:
                (own / PLAN).write_text(plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
            text = config_text(model, manifest, hosting, settings, previews=previews)
            (folder / model / "config.pbtxt").write_text(text, encoding="utf-8")
            if model == name:
                copy_bundle(bundle, first, [settings.variant] if settings.variant else None, link=link, report=report)
            else:
                shutil.copytree(first, own / BUNDLE, copy_function=_linked)
        record = {"triton_models": list(models), "bundle": bundle.root.name, "starflow": version("starflow-compiler")}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return list(models)


def _linked(source: str, destination: str) -> None:
    """A hard link, or a copy where the file system has none."""
    with contextlib.suppress(OSError):
        os.link(source, destination)
        return
    shutil.copyfile(source, destination)
