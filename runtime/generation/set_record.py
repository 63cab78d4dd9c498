"""`_set.json`, which lies beside the shards of a set and says what they are made of, so that shards of two sets never mix."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.generation.formats import FormatName
from starflow.runtime.generation.job import Job
from starflow.runtime.plain.atomic_write import write_new_text
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.json_text import read_json
from starflow.runtime.plain.validation import Part, one_line
from starflow.runtime.plans.decode_plan import Students


class SetRecord(Part):
    """What the shards of a set are made of.

    Attributes:
        schema_version: Version of this schema.
        bundle: SHA-256 of the bundle's manifest.json, which states the digest of every other file.
        data_shape: Shape of the model's data, [C, H, W] or [D].
        count: Number of images of the set.
        shards: Number of shards.
        format: Format of the shards.
        seed, temperature, denoise, denoising_rate: See `Sampler.sample`.
        guidance, guidance_interval: See `Guidance`.
        conditions: SHA-256 of labels, captions or condition tokens, and of null condition tokens.
        batch: Images of a batch.
        plan: The plan that was asked for: `auto`, `sequential`, `student`, `student+N`, or the plan itself.
        variant, backend: What ran.
    """

    schema_version: Literal[1] = 1
    bundle: str
    data_shape: tuple[int, ...]
    count: int
    shards: int
    format: FormatName
    seed: int
    guidance: float
    guidance_interval: tuple[float, float]
    temperature: float
    conditions: str
    denoise: str
    denoising_rate: float
    batch: int
    plan: Any
    variant: str
    backend: str


def asked_for(job: Job, bundle: Bundle) -> dict[str, Any]:
    """The fields of a job's record that are known before the bundle runs."""
    images, plan = job.images, job.options.get("plan", "auto")
    if isinstance(plan, Students):
        plan = str(plan)
    variant = job.options.get("variant")
    return {
        "bundle": sha256(bundle.folder / "manifest.json"),
        "data_shape": tuple(bundle.manifest.model.data_shape),
        "count": images.count,
        "shards": job.folder.shards,
        "format": job.folder.format_name,
        "seed": images.seed,
        "guidance": images.guidance.weight,
        "guidance_interval": images.guidance.interval,
        "temperature": images.temperature,
        "conditions": images.conditions_digest,
        "denoise": images.denoise,
        "denoising_rate": images.denoising_rate,
        "batch": job.batch,
        "plan": plan.model_dump(mode="json") if isinstance(plan, BaseModel) else plan,
        **({"variant": variant} if variant else {}),
    }


def check_record(job: Job, asked: Mapping[str, Any]) -> None:
    """See that the folder of a job holds no shards of another set.

    Raises:
        UsageError: it does, or its record cannot be read.
    """
    path = job.folder.record
    try:
        found = SetRecord.model_validate(read_json(path))
    except FileNotFoundError:
        if any(path.parent.glob("shard-*-of-*")):
            raise UsageError(
                f"{path}: is missing, so nobody can tell what the shards beside it are made of; name another folder with --out"
            ) from None
        return
    except ValidationError as error:
        raise UsageError(f"{path}: {one_line(error)}; name another folder with --out") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); name another folder with --out") from None
    for name, expected in asked.items():
        value = getattr(found, name)
        if value != expected:
            values = "" if name in ("bundle", "conditions") else f" {value}, this command asks for {expected}"
            other = {"bundle": "another bundle", "conditions": "other conditions"}.get(name, name)
            raise UsageError(f"{path}: the shards here are of {other}{values}; name another folder with --out")


def claim_folder(job: Job, asked: Mapping[str, Any], variant: str, backend: str) -> None:
    """Write the record of a job into its folder, if there is none, or see that the one there says the same.

    Raises:
        UsageError: it says something else, or the folder cannot be written.
        StarflowError: the system refuses to write.
    """
    record = SetRecord.model_validate({**asked, "variant": variant, "backend": backend})
    check_record(job, dict(record))
    if not job.folder.record.exists():
        write_new_text(job.folder.record, record.model_dump_json(indent=1) + "\n")
        check_record(job, dict(record))
