"""`starflow triton`: what it writes, that the bundle in it is the bundle, and what it refuses. Triton itself: test_server.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow.runtime import Bundle, Sampler
from starflow.runtime.command_line import main
from starflow.runtime.serve.named_tensors import inputs, outputs
from starflow.runtime.serve.triton.settings import Settings
from tests.config_text import parse_config


def written(*words: str | Path) -> int:
    return main(["triton", *map(str, words)])


def config_of(repository: Path, model: str) -> dict[str, Any]:
    return parse_config((repository / model / "config.pbtxt").read_text())


def parameters_of(config: dict[str, Any]) -> dict[str, str]:
    return {each["key"][0]: each["value"][0]["string_value"][0] for each in config["parameters"]}


def images_of(repository: Path, model: str, labels: list[int]) -> Any:
    """What the model in a repository makes, opened by its own parameters."""
    settings = Settings.of_parameters(parameters_of(config_of(repository, model)))
    with settings.open(repository / model / "1", threads=1) as sampler:
        return sampler.sample(labels, seed=7, guidance=1.5)


def test_a_repository_says_what_the_manifest_says(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "repository"
    assert written(tiny_bundle, "-o", out, "--name", "tiny", "--count", "2", "--patience", "2.5", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"repository": str(out), "models": ["tiny", "tiny-previews"], "max_batch_size": 2}
    assert sorted(path.name for path in out.iterdir()) == ["starflow.json", "tiny", "tiny-previews"]
    config, manifest = config_of(out, "tiny"), Bundle.open(tiny_bundle).manifest
    types = {"INT64": "TYPE_INT64", "FP32": "TYPE_FP32", "UINT8": "TYPE_UINT8"}
    for field, specs in (("input", inputs(manifest)), ("output", outputs(manifest))):
        assert [(each["name"], each["data_type"], tuple(each["dims"])) for each in config[field]] == [
            ([spec.name], [types[spec.datatype]], spec.shape[1:] or (1,)) for spec in specs
        ]
    assert all(each["optional"] == [True] for each in config["input"])
    assert (config["name"], config["backend"], config["max_batch_size"]) == (["tiny"], ["python"], [2])
    assert config["dynamic_batching"] == [{"max_queue_delay_microseconds": [2500]}]
    assert config["instance_group"] == [{"count": [2], "kind": ["KIND_CPU"]}]
    assert "model_transaction_policy" not in config
    streaming = config_of(out, "tiny-previews")
    assert streaming["model_transaction_policy"] == [{"decoupled": [True]}]
    assert [each["name"] for each in streaming["output"]] == [["image"], ["blocks_left"]]
    assert {name: value for name, value in config.items() if name not in ("name", "output")} == {
        name: value for name, value in streaming.items() if name not in ("name", "output", "model_transaction_policy")
    }
    compile((out / "tiny/1/model.py").read_text(), "model.py", "exec")


def test_captions_are_text_and_conditions_have_their_shape(captioned_bundle: Path, tmp_path: Path) -> None:
    assert written(captioned_bundle, "-o", tmp_path / "out", "--name", "c") == 0
    config = config_of(tmp_path / "out", "c")
    assert [(each["name"], each["data_type"], each["dims"]) for each in config["input"]][:2] == [
        (["caption"], ["TYPE_STRING"], [1]),
        (["condition"], ["TYPE_FP32"], [8, 32]),
    ]


def test_the_bundle_in_it_is_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_bundle, tmp_path / "source")
    (source / "notes.txt").write_text("mine")
    for link in ((), ("--link",)):
        assert written(source, "-o", tmp_path / "out", "--name", "tiny", "--force", *link) == 0
        for model in ("tiny", "tiny-previews"):
            copied = tmp_path / "out" / model / "1/bundle"
            opened = Bundle.open(copied)
            opened.verify_hashes()
            assert [variant.name for variant in opened.manifest.variants] == ["cpu-fp32"], "the one that it runs"
            assert not (copied / "notes.txt").exists()
            weights = opened.manifest.variants[0].weights.path
            assert ((copied / weights).stat().st_ino == (source / weights).stat().st_ino) == bool(link)
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        expected = sampler.sample([3, 4, 5], seed=7, guidance=1.5)
    shutil.rmtree(source)  # what was linked stays
    for model in ("tiny", "tiny-previews"):
        assert np.array_equal(images_of(tmp_path / "out", model, [3, 4, 5]), expected)


def test_it_runs_as_the_options_say(tiny_bundle: Path, tmp_path: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        tokens = sampler.bundle.autoregressive.decoded_tokens()
    chunk = {"kind": "chunk", "passes": 1}  # far from converged, so that it shows
    plan = {"blocks": [{"block": at, "segments": [{**chunk, "tokens": count}]} for at, count in tokens.items()]}
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    options: dict[str, Any] = {"variant": "portable-fp32", "plan": str(tmp_path / "mine.json"), "threads": 1}
    with Sampler.open(tiny_bundle, **options) as sampler:
        expected = sampler.sample([3, 4], seed=7, guidance=1.5)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert written(tiny_bundle, "-o", tmp_path / "out", "--name", "tiny", *words) == 0
    (tmp_path / "mine.json").unlink()
    settings = Settings.of_parameters(parameters_of(config_of(tmp_path / "out", "tiny")))
    with settings.open(tmp_path / "out/tiny/1", threads=4) as sampler:
        assert (sampler.variant.name, settings.threads) == ("portable-fp32", 1)
    assert np.array_equal(images_of(tmp_path / "out", "tiny", [3, 4]), expected)
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        assert not np.array_equal(expected, sampler.sample([3, 4], seed=7, guidance=1.5)), "the plan was followed"


@pytest.mark.parametrize(("plan", "words"), [("student", "student"), ("student+1", "student and 1 pass")])
def test_students_arrive(students_bundle: Path, tmp_path: Path, plan: str, words: str) -> None:
    assert written(students_bundle, "-o", tmp_path / "out", "--name", "s", "--plan", plan) == 0
    settings = Settings.of_parameters(parameters_of(config_of(tmp_path / "out", "s")))
    with settings.open(tmp_path / "out/s/1", threads=1) as sampler:
        assert sampler.decoding.endswith(f"flow block 0 by its {words}")


def test_solvers_shapes_and_batch_sizes_arrive(continuous_bundle: Path, tmp_path: Path) -> None:
    assert written(continuous_bundle, "-o", tmp_path / "out", "--name", "c", "--solver", "euler", "--steps", "2") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c", "starflow.json"], "one block, no preview"
    settings = Settings.of_parameters(parameters_of(config_of(tmp_path / "out", "c")))
    with settings.open(tmp_path / "out/c/1", threads=1) as sampler:
        assert sampler.decoding.startswith("euler, 2 steps")
    given = Settings(shape=(8, 12), batch=4, variant="x").parameters()
    assert given["shape"] == "8x12" and Settings.of_parameters(given) == Settings(shape=(8, 12), batch=4, variant="x")


@pytest.mark.parametrize(
    ("words", "kind", "backend", "provider"),
    [
        ((), "KIND_CPU", "onnxruntime", "cpu"),
        (("--kind", "cpu"), "KIND_CPU", "onnxruntime", "cpu"),
        (("--kind", "gpu"), "KIND_GPU", "onnxruntime", "cuda"),
        (("--provider", "tensorrt"), "KIND_GPU", "onnxruntime", "tensorrt"),
        (("--backend", "tensorrt"), "KIND_GPU", "tensorrt", "cpu"),
    ],
)
def test_a_model_runs_where_its_instances_are(
    tiny_bundle: Path, tmp_path: Path, words: tuple[str, ...], kind: str, backend: str, provider: str
) -> None:
    assert written(tiny_bundle, "-o", tmp_path / "out", "--name", "tiny", *words) == 0
    config = config_of(tmp_path / "out", "tiny")
    (group,) = config["instance_group"]
    assert group == {"count": [1], "kind": [kind], **({"gpus": [0]} if kind == "KIND_GPU" else {})}
    parameters = parameters_of(config)
    assert (parameters["backend"], parameters["provider"]) == (backend, provider)


WRONG = {
    "a name": (("--name", "a b"), "--name 'a b': give a name of letters"),
    "no instances": (("--count", "0"), "--count 0: give a number from 1 to 64"),
    "no patience": (("--patience", "-1"), "--patience -1: give a number from 0"),
    "a kind": (("--kind", "tpu"), "--kind tpu: expected cpu or gpu"),
    "a GPU on the CPU": (("--kind", "cpu", "--provider", "cuda"), "--kind cpu and --provider cuda exclude each other"),
    "a variant for the CPU": (
        ("--kind", "gpu", "--variant", "cpu-fp32"),
        "variant cpu-fp32 does not run on provider cuda",
    ),
    "another variant": (("--variant", "cpu-int2"), "has no variant 'cpu-int2'; it has"),
    "a backend": (
        ("--backend", "torch"),
        "backend: found 'torch', expected one of 'auto', 'onnxruntime' or 'tensorrt'",
    ),
    "a provider": (("--provider", "tpu"), "provider: found 'tpu'"),
    "threads": (("--threads", "-1"), "threads: found -1, expected 0 or more"),
    "a shape": (("--shape", "9x9"), "9x9"),
    "a batch": (("--batch", "7"), "batch 7: this bundle has 2"),
    "a plan": (("--plan", "nowhere.json"), "plan nowhere.json: cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line_and_writes_nothing(tiny_bundle: Path, tmp_path: Path, capsys: Any, case: str) -> None:
    words, message = WRONG[case]
    assert written(tiny_bundle, "-o", tmp_path / "out", *words) in (1, 2)
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_only_its_own_repositories_give_way(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "tiny.bundle")
    out = tmp_path / "out"
    assert written(bundle, "-o", out) == 0 and (out / "tiny").is_dir()
    assert written(bundle, "-o", out) == 2 and written(bundle, "-o", out, "--force", "--name", "other") == 0
    assert not (out / "tiny").exists() and (out / "other/config.pbtxt").is_file()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").write_bytes(b"holiday")
    capsys.readouterr()
    for destination, message in (
        (tmp_path / "photos", "photos: is not a Triton model repository of starflow"),
        (bundle, "which is read; name another folder"),
        (bundle / "graphs" / "out", "belongs to the bundle"),
    ):
        assert written(bundle, "-o", destination, "--force") == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert (tmp_path / "photos/one.jpg").read_bytes() == b"holiday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos", "tiny.bundle"]


def test_a_damaged_bundle_leaves_the_old_repository(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "tiny.bundle")
    assert written(bundle, "-o", tmp_path / "out") == 0
    before = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*")}
    (bundle / Bundle.open(bundle).manifest.variants[0].weights.path).write_bytes(b"short")
    capsys.readouterr()
    assert written(bundle, "-o", tmp_path / "out", "--force") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*")} == before


def test_links_do_not_reach_another_disk(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk here")
    out = memory / f"starflow-{tmp_path.name}"
    assert written(tiny_bundle, "-o", out, "--link") == 2
    told = capsys.readouterr().err
    assert "cannot be linked there (Invalid cross-device link); copy it instead" in told and told.count("\n") == 1
    assert not list(memory.glob(f"*{out.name}*"))
