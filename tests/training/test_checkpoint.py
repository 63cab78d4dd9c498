"""Checkpoints on disk: what is stored, that it appears whole or not at all, and what damage is called."""

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.training.autoregressive.config import TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive, open_checkpoint, save_checkpoint
from starflow.training.config import CheckpointConfig, Conditioning
from starflow.training.families import build_flow

CONFIG = CheckpointConfig(
    model=TarflowConfig(
        in_channels=1, img_size=4, patch_size=2, channels=8, head_dim=4, num_blocks=2, layers_per_block=1, num_classes=3
    ),
    conditioning=Conditioning(kind="class", num_classes=3, class_names=("a", "b", "c")),
    noise_std=0.1,
)


@pytest.fixture
def model() -> AutoregressiveFlow:
    torch.manual_seed(0)
    model = build_flow(CONFIG.model)
    assert isinstance(model, AutoregressiveFlow)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path: Path, model: AutoregressiveFlow) -> Path:
    save_checkpoint(tmp_path / "checkpoint", CONFIG, model.state_dict())
    return tmp_path / "checkpoint"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_comes_back_as_it_was(checkpoint: Path, model: AutoregressiveFlow) -> None:
    assert names_in(checkpoint) == ["config.json", "model.safetensors"]
    config, loaded = load_autoregressive(checkpoint)
    assert config == CONFIG and not loaded.training
    x = torch.randn(2, 1, 4, 4)
    y = torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(loaded(x, y).z, model(x, y).z)


def test_the_library_of_the_format_reads_the_file(checkpoint: Path, model: AutoregressiveFlow) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())


def test_number_types_are_kept_and_shapes_of_every_kind_survive(tmp_path: Path) -> None:
    state = {
        "odd": torch.randn(3, 3, dtype=torch.float16),
        "brain": torch.randn(5).bfloat16(),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "transposed": torch.randn(4, 6).T,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(7)),
    }
    save_checkpoint(tmp_path / "c", CONFIG, state)
    stored = load_file(tmp_path / "c" / "model.safetensors")
    for name, value in state.items():
        assert stored[name].dtype == value.dtype and torch.equal(stored[name], value), name
    content = (tmp_path / "c" / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    assert metadata.pop("format") == "pt"  # as diffusers and transformers write it
    digest = metadata.pop("starflow").removeprefix("sha256:")
    assert digest == hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() and not metadata
    for name, entry in header.items():  # readers that map the file need every tensor at a multiple of its number's size
        assert (8 + size + entry["data_offsets"][0]) % state[name].dtype.itemsize == 0


def test_half_storage_rounds_to_nearest(tmp_path: Path, model: AutoregressiveFlow) -> None:
    save_checkpoint(tmp_path / "c", CONFIG, model.state_dict(), half=True)
    stored = load_file(tmp_path / "c" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    _, loaded = load_autoregressive(tmp_path / "c")
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        before = model.state_dict()[name]
        assert bool(((value - before).abs() <= 2.0**-11 * before.abs() + 2.0**-25).all()), name


class OneAtATime(Mapping[str, Tensor]):
    """A state whose tensors are made when asked for: counts how many are alive at once."""

    def __init__(self) -> None:
        self.alive = 0
        self.most = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.ones(4)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor, self._gone)
        return tensor

    def _gone(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return iter(f"x{index}" for index in range(20))

    def __len__(self) -> int:
        return 20


def test_tensors_are_written_one_at_a_time(tmp_path: Path) -> None:
    state = OneAtATime()
    seen: list[tuple[int, int]] = []
    save_checkpoint(
        tmp_path / "c", CONFIG, state, half=True, progress=lambda done, total, doing=None: seen.append((done, total))
    )
    assert state.most <= 2  # the one before may last until the next is bound
    assert seen == [(done, 20) for done in range(1, 21)]


def test_extra_files_lie_beside_it(tmp_path: Path, model: AutoregressiveFlow) -> None:
    save_checkpoint(tmp_path / "c", CONFIG, model.state_dict(), extra_files={"recipe.yaml": "a: 1\n"})
    assert (tmp_path / "c" / "recipe.yaml").read_text() == "a: 1\n"


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (float("nan"), False, "blocks.1.proj_in.bias holds NaN or infinity"),
        (float("-inf"), True, "blocks.1.proj_in.bias holds NaN or infinity"),
        (1e5, True, "blocks.1.proj_in.bias does not fit into float16; store these weights in float32"),
    ],
)
def test_a_failure_leaves_what_was_there(
    value: float, half: bool, expected: str, checkpoint: Path, model: AutoregressiveFlow
) -> None:
    before = {name: (checkpoint / name).read_bytes() for name in names_in(checkpoint)}
    model.state_dict()["blocks.1.proj_in.bias"][0] = value
    for folder in (checkpoint, checkpoint.parent / "new"):
        with pytest.raises(CheckpointError, match=expected):
            save_checkpoint(folder, CONFIG, model.state_dict(), half=half)
    assert names_in(checkpoint.parent) == ["checkpoint"]
    assert {name: (checkpoint / name).read_bytes() for name in names_in(checkpoint)} == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, model: AutoregressiveFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="c: cannot be written: No space left on device"):
        save_checkpoint(tmp_path / "c", CONFIG, model.state_dict())
    assert names_in(tmp_path) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, model: AutoregressiveFlow) -> None:
    def interrupt(done: int, total: int, doing: str | None = None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "c", CONFIG, model.state_dict(), progress=interrupt)
    assert names_in(tmp_path) == []


def test_an_existing_folder_gives_way_only_when_told(checkpoint: Path, model: AutoregressiveFlow) -> None:
    with pytest.raises(UsageError, match="exists"):
        save_checkpoint(checkpoint, CONFIG, model.state_dict(), replace=False)
    save_checkpoint(checkpoint, CONFIG.model_copy(update={"noise_std": 0.5}), model.state_dict())
    assert open_checkpoint(checkpoint)[0].noise_std == 0.5
    assert names_in(checkpoint.parent) == ["checkpoint"]


def test_what_is_no_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; a checkpoint is a folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is a file; a checkpoint is a folder"):
        open_checkpoint(checkpoint / "config.json")
    for name in ("config.json", "model.safetensors"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        with pytest.raises(CheckpointError, match=f"has no {name}; `starflow train` and `starflow import` write"):
            open_checkpoint(checkpoint)
        (checkpoint / name).write_bytes(content)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_truncated_weights(kept: float, checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: damaged or truncated \(.*\); copy it again"
    ) as caught:
        open_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model(checkpoint: Path) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    del stored["blocks.1.proj_out.bias"]
    save_file(stored, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: blocks.1.proj_out.bias: found no such tensor"):
        load_autoregressive(checkpoint)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: "", "config.json: is not JSON"),
        (lambda text: text[:-20], "config.json: is not JSON"),
        (lambda text: "[]", "config.json: "),
        (lambda text: text.replace('"channels"', '"chanels"'), "config.json: .*channels"),
        (
            lambda text: text.replace('"tarflow"', '"resnet"'),
            "config.json: model: .*'resnet'|config.json: model.*resnet",
        ),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "config.json: format_version"),
        (
            lambda text: text.replace('"num_classes": 3', '"num_classes": 4', 1),
            "conditioning.num_classes 3 does not fit",
        ),
        (lambda text: text.replace('"c"', '"c", "d"'), "4 class_names for 3 classes"),
        (lambda text: text.replace('"noise_std": 0.1', '"noise_std": -1'), "noise_std: found -1, expected 0 or more"),
    ],
)
def test_damaged_configuration(damage: object, expected: str, checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    changed = damage(path.read_text())  # type: ignore[operator]
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(CheckpointError, match=expected) as caught:
        open_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


def test_configuration_that_is_no_text(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"config.json: is not JSON .*utf-8"):
        open_checkpoint(checkpoint)


def test_the_configuration_is_plain_json(checkpoint: Path) -> None:
    document = json.loads((checkpoint / "config.json").read_text())
    assert document["model"]["family"] == "tarflow" and document["conditioning"]["class_names"] == ["a", "b", "c"]


def test_the_hash_follows_the_weights(checkpoint: Path, model: AutoregressiveFlow) -> None:
    before = open_checkpoint(checkpoint)[1].sha256()
    save_checkpoint(checkpoint, CONFIG, model.state_dict())
    assert open_checkpoint(checkpoint)[1].sha256() == before  # the file is a function of the state
    model.state_dict()["blocks.0.proj_in.bias"][0] += 1
    save_checkpoint(checkpoint, CONFIG, model.state_dict())
    assert open_checkpoint(checkpoint)[1].sha256() != before
