"""--force replaces only what starflow wrote, and never what it reads; the commands refuse the rest in one line."""

import shutil
from pathlib import Path

import pytest

from starflow.runtime.command_line import main


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(b"holiday")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_export_spares_its_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(checkpoint)
    for out in (checkpoint, checkpoint.parent):
        assert "which is read" in refused(capsys, "export", checkpoint, "-o", out, "--force")
    assert content(checkpoint) == before


def test_export_spares_other_folders(checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = photos.with_name("link")
    link.symlink_to(photos)
    assert "photos: is not a bundle" in refused(capsys, "export", checkpoint, "-o", photos, "--force")
    assert "link: is a link" in refused(capsys, "export", checkpoint, "-o", link, "--force")
    other = shutil.copytree(checkpoint, checkpoint.with_name("other"))
    assert "other: is not a bundle" in refused(capsys, "export", checkpoint, "-o", other, "--force")
    assert content(photos) == {"one.jpg": b"holiday"} and content(other) == content(checkpoint)


def test_export_replaces_a_bundle(checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "engines").mkdir()
    assert main(["export", str(checkpoint), "-o", str(bundle), "--force"]) == 0
    assert not (bundle / "engines").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "checkpoint"]


def test_import_spares_its_weights_and_other_folders(
    checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(checkpoint)
    command = ("import", checkpoint / "model.safetensors", "--config", checkpoint / "config.json", "--force", "-o")
    assert "which is read" in refused(capsys, *command, checkpoint)
    assert "photos: is not a checkpoint" in refused(capsys, *command, photos)
    assert content(checkpoint) == before and content(photos) == {"one.jpg": b"holiday"}
    again = checkpoint.with_name("again")
    for _ in range(2):  # the second time it replaces what the first one wrote
        assert main([*map(str, command), str(again)]) == 0
