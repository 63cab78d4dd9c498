"""Sampling leaves no trace outside the bundle and asks nobody: every file it opens and every host it looks up is watched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = "import sys; from starflow.runtime import Sampler; s = Sampler.open(sys.argv[1], threads=1); s.sample(count=1); s.close()"

# With one of these set ONNX Runtime sends nothing, and a watch that sees nothing would prove nothing.
CONTINUOUS_INTEGRATION = (
    *("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "JENKINS_URL", "CODEBUILD_BUILD_ID"),
    *("BUILDKITE", "TEAMCITY_VERSION", "APPVEYOR", "BITBUCKET_BUILD_NUMBER"),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def run_watched(home: Path, code: str, *arguments: str, **environment: str) -> str:
    """Run Python under strace; every file it created and every connection it opened, one a line."""
    trace = home.parent / "trace"
    watch = ["strace", "-f", "-o", str(trace), "-e", "trace=%file,%network"]
    dropped = {"ORT_DISABLE_TELEMETRY", *CONTINUOUS_INTEGRATION}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    subprocess.run(
        [*watch, sys.executable, "-c", code, *arguments], env=kept | {"HOME": str(home)} | environment, check=True
    )
    return "\n".join(
        line
        for line in trace.read_text(errors="replace").splitlines()
        if "AF_INET" in line
        or "/etc/resolv.conf" in line
        or (str(home) in line and ("O_CREAT" in line or "mkdir" in line))
    )


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_sampler_opens_no_connection_and_writes_nothing_at_home(tiny_bundle: Path, home: Path) -> None:
    assert run_watched(home, SAMPLE, str(tiny_bundle), PYTHONDONTWRITEBYTECODE="1") == ""
    assert os.listdir(home) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_watch_sees_what_onnx_runtime_does_by_itself(tiny_bundle: Path, home: Path) -> None:
    """Otherwise the test above would pass whatever starflow does."""
    seen = run_watched(home, SAMPLE, str(tiny_bundle), ORT_DISABLE_TELEMETRY="0", PYTHONDONTWRITEBYTECODE="1")
    assert "Microsoft" in seen and os.listdir(home) == [".cache"]


def test_the_switches_are_set_before_onnx_runtime_and_ray_are_loaded() -> None:
    code = (
        "import sys, starflow.runtime, os\n"
        "assert 'onnxruntime' not in sys.modules and os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "assert 'ray' not in sys.modules and os.environ['RAY_USAGE_STATS_ENABLED'] == '0'"
    )
    unset = {
        name: value
        for name, value in os.environ.items()
        if name not in ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=unset)
