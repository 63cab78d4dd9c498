"""Two processes against one: the same parameters, also after one of them was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from starflow.runtime.plain.errors import UsageError
from starflow.training.checkpoint import load_autoregressive
from starflow.training.data.dataset import load_dataset
from starflow.training.data.source import NpzSource
from starflow.training.recipe import Recipe
from starflow.training.runs.engine import engine_for
from starflow.training.trainer import Trainer
from tests.training.test_trainer import STARFLOW, losses, recipe

# What starts a process takes most of the time here, and scikit-learn would be a quarter of it: the processes read its digits from a file.
SETTINGS = {"steps": 50, "batch_size": 32, "learning_rate": 3e-4, "log_every": 1, "checkpoint_every": 20, "threads": 1}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_digits()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    pixels = np.rint(digits.images[:400] * (255 / 16)).astype(np.uint8)
    np.savez(path, images=pixels, labels=digits.target[:400])
    return path


def settings(digits: Path, **changes: object) -> Recipe:
    data = NpzSource(kind="npz", path=digits)
    return recipe(STARFLOW, **SETTINGS, **changes).model_copy(update={"data": data})


def start(folder: Path, recipe: Recipe, parallel: str) -> subprocess.Popen[str]:
    file = folder.with_suffix(".yaml")
    file.write_text(recipe.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "starflow.runtime", "train", str(file), "--out", str(folder), "--parallel", parallel]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    output, messages = process.communicate(timeout=300)
    assert process.returncode == 0, output + messages


def alone(folder: Path, recipe: Recipe) -> None:
    trainer = Trainer(recipe, load_dataset(recipe.data, folder), folder)
    trainer.resume()
    trainer.fit()


def assert_same(folder: Path, other: Path, tolerance: float) -> None:
    one, two = (torch.load(each / "state.pt", weights_only=True) for each in (folder, other))
    torch.testing.assert_close(one["model"], two["model"], rtol=0, atol=tolerance)
    torch.testing.assert_close(one["averages"], two["averages"], rtol=0, atol=tolerance)
    assert one["step"] == two["step"] == 50
    assert list(one["optimizer"]["state"]) == list(two["optimizer"]["state"])  # whole, and by the names of parameters
    assert losses(folder) == pytest.approx(losses(other), abs=1e-5)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A run of one process, whose batches come in the two parts that two processes have."""
    folder = tmp_path_factory.mktemp("one") / "run"
    alone(folder, settings(digits, accumulate=2))
    start = torch.load(folder / "state.pt", weights_only=True)["model"]
    fresh = Trainer(settings(digits), load_dataset(settings(digits).data, folder), folder / "fresh").model.state_dict()
    assert max(float((start[name] - value).abs().max()) for name, value in fresh.items()) > 2e-3  # it has moved
    return folder


def assert_judged_as_one(folder: Path, other: Path) -> None:
    figures = [json.loads((each / "checkpoint" / "metrics.json").read_text()) for each in (folder, other)]
    assert figures[0]["validation_bits_per_dim"] == pytest.approx(figures[1]["validation_bits_per_dim"], abs=1e-3)
    _, model = load_autoregressive(folder / "checkpoint")  # the ordinary one
    _, best = load_autoregressive(folder / "checkpoint-best")
    average = torch.load(folder / "state.pt", weights_only=True)["averages"][0.999]
    for found in (model, best):
        torch.testing.assert_close(dict(found.state_dict()), dict(average), rtol=0, atol=0)


@pytest.mark.parametrize(
    "parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)]
)  # with a killed process, below
def test_two_processes_train_as_one(tmp_path: Path, digits: Path, one_process: Path, parallel: str) -> None:
    folder = tmp_path / "run"
    finish(start(folder, settings(digits), parallel))
    assert_same(folder, one_process, 1e-5)
    assert_judged_as_one(folder, one_process)


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_killed_process_ends_the_run_which_then_goes_on(
    tmp_path: Path, digits: Path, one_process: Path, parallel: str
) -> None:
    folder = tmp_path / "killed"
    process = start(folder, settings(digits), parallel)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 25/"):
            ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
            os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
            break
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 20
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    alone(folder, settings(digits))
    assert_same(folder, one_process, 5e-5)  # from here on its batches come in one part
    finish(start(again, settings(digits), parallel))
    assert_same(again, one_process, 1e-5)
    assert_judged_as_one(again, one_process)


def test_what_torchrun_did_not_start_or_not_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--parallel ddp needs the processes of torchrun: torchrun --nproc"):
        engine_for("ddp", cuda=False).__enter__()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun started several processes; add --parallel"):
        engine_for(None, cuda=False).__enter__()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_recomputed_activations_change_nothing(tmp_path: Path, digits: Path, accumulate: int) -> None:
    dropout = {"attention_dropout": 0.2, "feed_forward_dropout": 0.2, "accumulate": accumulate}
    data = load_dataset(settings(digits).data, tmp_path)
    plain, again = (Trainer(settings(digits, recompute=each, **dropout), data, tmp_path) for each in (False, True))
    for _ in range(4):
        assert float(plain.train_step()["loss"]) == pytest.approx(float(again.train_step()["loss"]), abs=1e-6)
    torch.testing.assert_close(plain.model.state_dict(), again.model.state_dict(), rtol=0, atol=1e-6)
