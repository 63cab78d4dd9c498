"""NVIDIA's Triton from the package `nvidia-pytriton`, in an environment of its own, and a client that asks it."""

import json
import os
import pickle
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.installed_wheel import build_wheel, clean_environment, install, make_environment, pip

# Its Triton was built for NumPy 1.
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
START_SECONDS = 120.0
CLIENT = Path(__file__).with_name("client_program.py")


@dataclass(frozen=True)
class Environment:
    """Where Triton, its clients and starflow are installed."""

    scripts: Path

    @property
    def packages(self) -> Path:
        """The folder of its packages."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.scripts.parent / "lib" / version / "site-packages"

    @property
    def triton(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"


def make_triton(repository: Path, folder: Path) -> Environment:
    """Install Triton and this starflow; skips the test where that is not possible."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("nvidia-pytriton is for Linux on x86-64")
    environment = Environment(make_environment(folder / "environment"))
    command = pip(environment.scripts, "install", "--quiet", "--no-compile", *PACKAGES)
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        pytest.skip(f"nvidia-pytriton cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    stub = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (environment.triton / "python_backend_stubs" / stub).is_dir():
        pytest.skip(f"nvidia-pytriton has no stub for Python {stub}")
    (folder / "source").mkdir()
    wheel = build_wheel(repository, folder / "source")
    install(environment.scripts, repository, f"{wheel}[cpu,text]", PACKAGES[1], but=("numpy",))
    backend = folder / "backends" / "python"
    shutil.copytree(environment.triton / "backends" / "python", backend)
    shutil.copy(environment.triton / "python_backend_stubs" / stub / "triton_python_backend_stub", backend)
    return environment


@dataclass(frozen=True)
class Server:
    """A running Triton."""

    environment: Environment
    http: int
    grpc: int
    log: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as response:
            return json.loads(response.read() or "null")

    def counts(self, model: str) -> NDArray:
        """Images and executions so far."""
        (found,) = self.get(f"/v2/models/{model}/stats")["model_stats"]
        return np.array([int(found["inference_count"]), int(found["execution_count"])])

    def ask(self, what: str, *requests: tuple[str, dict[str, NDArray], tuple[str, ...]]) -> list[Any]:
        """The answers of requests; see `client_program`."""
        command: list[str | Path] = [self.environment.scripts / "python", CLIENT, str(self.http), str(self.grpc), what]
        done = subprocess.run(
            command,
            input=pickle.dumps(requests, 4),
            capture_output=True,
            timeout=300,
            env=clean_environment(),
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return pickle.loads(done.stdout)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def start(environment: Environment, log: Path, repositories: list[Path]) -> tuple[subprocess.Popen, Server]:
    """Start Triton on free ports of this machine."""
    ports = dict(zip(("http", "grpc"), _free_ports(), strict=True))
    libraries = [environment.packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    own = {
        "PATH": f"{environment.scripts}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
    }
    command: list[str | Path] = [
        environment.triton / "bin" / "tritonserver",
        *(f"--model-repository={repository}" for repository in repositories),
        f"--backend-directory={environment.scripts.parents[1] / 'backends'}",
        *(f"--{kind}-address=127.0.0.1" for kind in ports),
        *(f"--{kind}-port={port}" for kind, port in ports.items()),
        "--allow-metrics=false",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=clean_environment() | own, cwd=log.parent, start_new_session=True
        )
    return process, Server(environment, **ports, log=log)


@contextmanager
def running(environment: Environment, log: Path, *repositories: Path) -> Iterator[Server]:
    """A Triton that has loaded its models; it has to stop in order, and log no traceback."""
    process, server = start(environment, log, list(repositories))
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-5000:]
            try:
                server.get("/v2/health/ready")
                break
            except OSError:
                time.sleep(0.2)
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
