"""A bundle by its name on the Hugging Face Hub: what is fetched, what is refused, and what works without a network."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from starflow.runtime import Sampler, SamplerPool
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError, UsageError
from tests.runtime.hub.loopback_hub import Files, LoopbackHub
from tests.simulated_device.fixtures import Simulate

NAME = "org/tiny"


def files_of(bundle: Path) -> Files:
    """All files of a folder but those that begin with a dot, which are the locks of commands that write."""
    files = (path for path in bundle.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def on_the_hub(hub: LoopbackHub, tiny_bundle: Path) -> LoopbackHub:
    hub.add(NAME, files_of(tiny_bundle) | {"README.md": b"a card", "samples.png": b"a picture"})
    return hub


def test_a_bundle_of_the_hub_makes_the_pixels_of_the_folder(on_the_hub: LoopbackHub, tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle) as here, Sampler.open(NAME) as there:
        expected = here.generate(here.noise(2, 5), [1, 2], guidance=1.5)
        np.testing.assert_array_equal(there.generate(there.noise(2, 5), [1, 2], guidance=1.5), expected)


def test_only_the_files_of_the_variant_are_fetched(on_the_hub: LoopbackHub) -> None:
    with Sampler.open(NAME, variant="cpu-fp32") as sampler:
        named = {file.path for file in sampler.manifest.files(["cpu-fp32"])}
        others = {file.path for file in sampler.manifest.files()} - named
    assert set(on_the_hub.fetched) == named | {"manifest.json", "manifest.sha256"}
    assert others  # which were not needed


def test_a_manifest_alone_is_inspected(on_the_hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", NAME]) == 0
    assert set(on_the_hub.fetched) == {"manifest.json", "manifest.sha256"}
    assert capsys.readouterr().out.startswith("bundle     org/tiny")
    assert main(["inspect", NAME, "--hashes"]) == 0
    assert len(on_the_hub.fetched) == 2 + len(list(Bundle.open(NAME).files()))


def test_a_revision_is_a_branch_or_a_commit(hub: LoopbackHub, tiny_bundle: Path, captioned_bundle: Path) -> None:
    first = hub.add(NAME, files_of(tiny_bundle))
    hub.add(NAME, files_of(captioned_bundle))
    assert Bundle.open(NAME).manifest.text
    assert Bundle.open(NAME, first).manifest.text is None
    assert Bundle.open(f"{NAME}@{first}").manifest.text is None
    with SamplerPool.open(NAME, revision=first) as pool:
        assert pool.manifest.text is None
    with pytest.raises(UsageError, match="has no revision v9 of org/tiny"):
        Bundle.open(f"{NAME}@v9")
    with pytest.raises(UsageError, match="leave one out"):
        Bundle.open(f"{NAME}@{first}", "main")
    with pytest.raises(UsageError, match="is a folder; a revision is for"):
        Bundle.open(tiny_bundle, "main")


def test_a_folder_of_the_name_comes_first(
    on_the_hub: LoopbackHub, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    with pytest.raises(
        UsageError, match="org/tiny: does not exist"
    ):  # a path with a slip in it is nobody else's business
        Bundle.open(NAME)
    assert not on_the_hub.fetched
    assert Bundle.open(f"{NAME}@main").manifest.variants
    (tmp_path / NAME).symlink_to(tiny_bundle)
    on_the_hub.fetched.clear()
    assert Bundle.open(NAME).folder.resolve() == tiny_bundle.resolve()


def test_the_cache_serves_without_a_network(
    on_the_hub: LoopbackHub, environment: dict[str, str], tmp_path: Path
) -> None:
    """In processes of their own, by the environment alone: the cache is filled, then the Hub is gone."""

    def sample(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
        words = [
            sys.executable,
            "-m",
            "starflow.runtime",
            "sample",
            NAME,
            "--labels",
            "1",
            "--out",
            str(tmp_path / name),
        ]
        return subprocess.run(words, env=environment | variables, capture_output=True, text=True, cwd=tmp_path)

    done = sample("first.png")
    assert done.returncode == 0, done.stderr
    fetched = on_the_hub.fetched.total()
    for name, variables in {
        "second.png": {"HF_HUB_OFFLINE": "1"},
        "third.png": {"HF_ENDPOINT": "http://127.0.0.1:9"},
    }.items():
        done = sample(name, **variables)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).read_bytes() == (tmp_path / "first.png").read_bytes()
    assert on_the_hub.fetched.total() == fetched
    done = sample("none.png", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "starflow sample: error: org/tiny: there is no such folder; the Hugging Face Hub cannot be reached, and its cache does "
        "not hold org/tiny"
    ]


def test_what_the_hub_does_not_have_is_one_line(hub: LoopbackHub) -> None:
    with pytest.raises(
        UsageError, match="org/none: there is no such folder; the Hugging Face Hub has no model org/none"
    ):
        Bundle.open("org/none")
    hub.add("org/other", {"README.md": b"no bundle"})
    with pytest.raises((BundleError, UsageError), match="org/other"):
        Bundle.open("org/other")


def test_a_file_of_another_content_is_refused(hub: LoopbackHub, tiny_bundle: Path) -> None:
    files = files_of(tiny_bundle)
    weights = Bundle.open(tiny_bundle).variant("cpu-fp32", "").weights.path
    files[weights] = files[weights][:-1] + bytes([files[weights][-1] ^ 1])
    hub.add(NAME, files)
    with pytest.raises(BundleError, match=rf"{weights}: its content is not what was exported"):
        Sampler.open(NAME)


def test_links_lead_as_far_as_the_blobs_of_the_model(
    on_the_hub: LoopbackHub, tiny_bundle: Path, tmp_path: Path
) -> None:
    with Sampler.open(NAME) as sampler:
        snapshot = sampler.bundle.folder.resolve()
        weights = snapshot / sampler.variant.weights.path
    assert weights.is_symlink() and weights.resolve().parent == snapshot.parents[1] / "blobs"
    Bundle.open(NAME)
    elsewhere = tmp_path / "cache" / "elsewhere"
    elsewhere.write_bytes(weights.read_bytes())
    weights.unlink()
    weights.symlink_to(elsewhere)
    with pytest.raises(BundleError, match="lies outside the bundle"):
        Bundle.open(NAME)


@pytest.mark.parametrize(
    "words",
    [["build", NAME, "--target", "tensorrt"], ["calibrate", NAME, "--plan"], ["calibrate", NAME, "--weights", "int8"]],
)
def test_a_bundle_of_the_hub_is_not_changed(
    on_the_hub: LoopbackHub, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert (
        "must stay as it is; change a copy of your own: starflow copy org/tiny -o tiny.bundle"
        in capsys.readouterr().err
    )


def test_engines_of_the_hub_run_only_if_asked_for(
    hub: LoopbackHub, simulate: Simulate, tiny_engines: Bundle, tmp_path: Path
) -> None:
    hub.add(NAME, files_of(tiny_engines.root))
    simulate()
    with Sampler.open(tiny_engines.root) as own, Sampler.open(NAME, variant="cpu-fp16") as fetched:
        assert own.backend.name == "tensorrt" and fetched.backend.name == "onnxruntime cpu"
        assert not any(name.endswith(".engine") for name in hub.fetched)
        with Sampler.open(NAME, backend="tensorrt") as asked:
            expected = own.generate(own.noise(2, 5), [1, 2])
            np.testing.assert_array_equal(asked.generate(asked.noise(2, 5), [1, 2]), expected)
    assert any(name.endswith(".engine") for name in hub.fetched)
    assert main(["copy", NAME, "-o", str(tmp_path / "own")]) == 0
    with Sampler.open(tmp_path / "own") as copied:
        assert copied.backend.name == "tensorrt"


def test_a_copy_is_ones_own(on_the_hub: LoopbackHub, tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(["copy", NAME, "-o", str(tmp_path / "own")]) == 0
    assert files_of(tmp_path / "own") == files_of(tiny_bundle)
    assert not any(path.is_symlink() for path in (tmp_path / "own").rglob("*"))


def test_without_the_package_a_missing_folder_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"org/name: there is no such folder; to fetch it .*\[hub\]"):
        Bundle.open("org/name")


def test_nothing_is_told_about_this_machine(environment: dict[str, str]) -> None:
    asks = "from starflow.runtime.bundle.hub_snapshot import import_hub; import_hub(); " + (
        "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    environment = {key: value for key, value in environment.items() if "TELEMETRY" not in key}
    assert (
        subprocess.run([sys.executable, "-c", asks], env=environment, capture_output=True, text=True).stdout == "True\n"
    )
    assert constants.ENDPOINT.startswith("http://127.0.0.1") and "HF_TOKEN" in os.environ
