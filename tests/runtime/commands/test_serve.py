"""`starflow serve` as a process: it listens, tells where, finishes what it took, and refuses in one line."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from starflow.runtime.command_line import main


@contextmanager
def serving(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process, and its address."""
    command = [sys.executable, "-m", "starflow.runtime", "serve", *words, "--threads", "1", "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


def ask(url: str, content: object, **headers: str) -> dict:
    request = urllib.request.Request(f"{url}/v1/images/generations", json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_it_finishes_what_it_took(tiny_bundle: Path) -> None:
    with serving(str(tiny_bundle), "--patience", "1500") as (process, url):
        before = ask(url, {"prompt": "1", "n": 2, "seed": 3})
        found: list[dict] = []
        asking = threading.Thread(target=lambda: found.append(ask(url, {"prompt": "1", "seed": 3})))
        asking.start()
        while b'starflow_waiting_images{model="bundle"} 1.0' not in urllib.request.urlopen(f"{url}/metrics").read():
            pass
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "")
    assert found[0]["data"][0] == before["data"][0]


def test_a_key_comes_from_the_environment_or_a_file(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(str(tiny_bundle), STARFLOW_KEY="s3cret") as (_, url):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(url, {"prompt": "1"})
        assert ask(url, {"prompt": "1"}, Authorization="Bearer s3cret")["data"]
    (tmp_path / "key").write_text("two words\n")
    command = ["serve", str(tiny_bundle), "--key-file", str(tmp_path / "key")]
    assert main(command) == 2


def test_wrong_use_is_one_line(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, message in (
            (
                [str(tiny_bundle), "--port", port],
                f"127.0.0.1 port {port}: cannot be listened on (Address already in use)",
            ),
            ([str(tiny_bundle), "--port", "70000"], "--port 70000: give a number from 0 to 65535"),
            ([str(tiny_bundle), "--samplers", "0"], "--samplers 0: give a number from 1"),
            ([str(tiny_bundle), str(tiny_bundle), "--port", "0"], "another bundle is called bundle as well"),
            (["nowhere", "--port", "0"], "nowhere: does not exist"),
            ([str(tiny_bundle), "--key-file", "nowhere"], "nowhere: cannot be read"),
        ):
            assert main(["serve", *words, "--threads", "1"]) == 2
            told = capsys.readouterr().err
            assert message in told and told.count("\n") == 1
