"""A set in shards: every image is that of one call, byte by byte, however the set is split and whoever stops it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow.runtime import Guidance, Sampler
from starflow.runtime.command_line import main
from starflow.runtime.generation.split import shard_images
from tests.runtime.generation.shard_readers import SET, contents, pixels, read_tar

Generate = Any
PLAN = {  # iterates until every image of a batch has converged
    "blocks": [
        {
            "block": block,
            "segments": [{"kind": "chunk", "tokens": 16, "passes": 16, "tolerance": 0.01, "converged": "batch"}],
        }
        for block in (0, 1)
    ]
}


@pytest.mark.parametrize("plan", ["sequential", "jacobi"])
def test_every_split_makes_the_images_of_one_call(
    generate: Generate, tiny_bundle: Path, tmp_path: Path, plan: str
) -> None:
    words = ["--plan", "sequential"]
    if plan == "jacobi":
        (tmp_path / "plan.json").write_text(json.dumps(PLAN))
        words = ["--plan", str(tmp_path / "plan.json")]
    found = []
    for shards in (1, 3, 5):
        folder = tmp_path / f"of-{shards}"
        told = generate(folder, "--shards", str(shards), *words)
        assert told == {"shards": shards, "written": list(range(shards)), "missing": [], "images": 11}
        assert len(list(folder.glob("*.tar"))) == shards
        found.append(read_tar(folder))
    assert found[0] == found[1] == found[2]
    with Sampler.open(tiny_bundle, plan=words[1], threads=1) as sampler:
        images = sampler.sample([g % 4 for g in range(11)], guidance=2.0, seed=7)
        alone = sampler.to_images(sampler.generate(sampler.noise(1, 7, first=6), [6 % 4], guidance=2.0))
    assert len(found[0]) == 3 * 11
    assert plan == "jacobi" or np.array_equal(alone[0], images[6])
    for g, image in enumerate(images):
        assert np.array_equal(pixels(found[0][f"{g:09d}.png"]), image[..., 0])
        assert json.loads(found[0][f"{g:09d}.json"]) == {"index": g, "seed": 7, "guidance": 2.0, "label": g % 4}
        assert found[0][f"{g:09d}.cls"] == str(g % 4).encode()


def test_sample_and_generate_are_one_way(generate: Generate, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    generate(one, "--shards", "3")
    for shard in (2, 0, 1):
        told = generate(other, "--shards", "3", "--shard", str(shard), command="sample")
        assert told["written"] == [shard]
    assert contents(one) == contents(other) and len(contents(one)) == 4


def test_parquet_holds_what_tar_holds(generate: Generate, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="reads Parquet; comes with Ray")
    generate(tmp_path / "tar", "--shards", "2")
    generate(tmp_path / "parquet", "--shards", "2", "--format", "parquet")
    generate(tmp_path / "again", "--shards", "2", "--format", "parquet")
    assert contents(tmp_path / "parquet") == contents(tmp_path / "again")
    table, members = pandas.read_parquet(tmp_path / "parquet"), read_tar(tmp_path / "tar")
    assert list(table.columns) == ["index", "seed", "guidance", "label", "image"]
    assert table["index"].tolist() == list(range(11))
    for row in table.itertuples():
        assert row.image == members[f"{row.index:09d}.png"]
        assert {"index": row.index, "seed": row.seed, "guidance": row.guidance, "label": row.label} == json.loads(
            members[f"{row.index:09d}.json"]
        )


def test_captions_come_from_a_file_in_turn(captioned_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("red\na blue cat\ngreen\n")
    set_of = ["--captions-file", str(tmp_path / "captions.txt"), "--count", "7", "--guidance", "1.5", "--threads", "1"]
    out = tmp_path / "out"
    assert main(["generate", str(captioned_bundle), *set_of, "--shards", "3", "--out", str(out)]) == 0
    found = read_tar(out)
    texts = [("red", "a blue cat", "green")[g % 3] for g in range(7)]
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        data = sampler.generate(sampler.noise(7), texts, guidance=1.5)
        images = sampler.to_images(data)
    for g, text in enumerate(texts):
        assert found[f"{g:09d}.txt"].decode() == text == json.loads(found[f"{g:09d}.json"])["caption"]
        assert np.array_equal(pixels(found[f"{g:09d}.png"]), images[g, ..., 0])


def test_shards_that_are_there_stay(generate: Generate, tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert generate(out, "--shards", "3", "--missing") == {"shards": 3, "missing": [0, 1, 2]}
    assert not out.exists()
    generate(out, "--shards", "3", "--shard", "1")
    (kept,) = out.glob("*.tar")
    before = kept.stat().st_ino
    command = ["generate", str(tiny_bundle), *SET, "--shards", "3", "--out", str(out)]
    assert main([*command, "--missing"]) == 0
    assert capsys.readouterr().out == "0\n2\n"
    assert main(command) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{out}: 1 shard is there and kept; --force makes it again"
    assert told[1].startswith(f"{out}/shard-00000-of-00003.tar: 4 images in ")
    assert told[-1] == f"{out}: 2 of 3 shards written, none missing"
    assert kept.stat().st_ino == before
    whole = contents(out)
    assert main([*command, "--missing"]) == 0
    assert capsys.readouterr().out == ""
    assert generate(out, "--shards", "3", "--force")["written"] == [0, 1, 2]
    assert kept.stat().st_ino != before and contents(out) == whole


@pytest.mark.parametrize("format_name", ["webdataset", "parquet"])
def test_a_shard_that_was_cut_short_is_missing(generate: Generate, tmp_path: Path, format_name: str) -> None:
    if format_name == "parquet":
        pytest.importorskip("pyarrow")
    words = ("--shards", "2", "--format", format_name)
    generate(tmp_path, *words)
    whole = contents(tmp_path)
    (first, _) = sorted(tmp_path.glob("shard-*"))
    content = first.read_bytes()
    size = len(content)
    for damaged in (*(content[:kept] for kept in (0, 3, 512, size // 2, size - 1, size - 1024)), bytes(size)):
        first.write_bytes(damaged)
        assert generate(tmp_path, *words, "--missing")["missing"] == [0], f"{len(damaged)} of {size} bytes"
    assert generate(tmp_path, *words)["written"] == [0]
    assert contents(tmp_path) == whole


def test_a_kill_in_mid_shard_leaves_no_shard(tiny_bundle: Path, tmp_path: Path) -> None:
    set_of = ("--labels", "0-3", "--count", "20000", "--threads", "1", "--shards", "2", "--out", str(tmp_path))
    command = [sys.executable, "-m", "starflow.runtime", "generate", str(tiny_bundle), *set_of]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 100_000 for path in tmp_path.glob(".shard-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (left,) = tmp_path.glob(".shard-*")  # is removed by who makes the shard next
        assert [path.name for path in tmp_path.glob("shard-*")] == []
        listed = subprocess.run([*command, "--missing"], check=True, capture_output=True, text=True)
        assert listed.stdout == "0\n1\n"
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not [path for path in tmp_path.glob(".shard-*") if path != left and path.stat().st_size > 100_000]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate()
    finally:
        process.kill()
    assert told == "interrupted; nothing half-written is left\n"
    assert [path.name for path in tmp_path.iterdir()] == ["_set.json"]


@pytest.mark.parametrize(
    ("words", "other"),
    [
        (("--seed", "8"), "seed 7, this command asks for 8"),
        (("--guidance", "1"), "guidance 2.0, this command asks for 1.0"),
        (("--count", "12"), "count 11, this command asks for 12"),
        (("--shards", "4"), "shards 3, this command asks for 4"),
        (("--labels", "0-2"), "other conditions"),
        (("--temperature", "0.5"), "temperature 1.0, this command asks for 0.5"),
        (("--plan", "sequential"), "plan auto"),
        (("--variant", "portable-fp32"), "variant cpu-fp32, this command asks for portable-fp32"),
    ],
)
def test_shards_of_two_sets_do_not_mix(
    generate: Generate, tiny_bundle: Path, tmp_path: Path, capsys: Any, words: tuple[str, str], other: str
) -> None:
    generate(tmp_path, "--shards", "3", "--shard", "0")
    whole = contents(tmp_path)
    for more in ((), ("--missing",), ("--force",)):
        # Of an option that is given twice, the last one counts.
        command = ["generate", str(tiny_bundle), *SET, "--shards", "3", "--out", str(tmp_path), *words, *more]
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"{tmp_path}/_set.json: the shards here are of {other}" in told
    assert contents(tmp_path) == whole


def test_students_make_a_set_of_their_own(students_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    words = [
        "generate",
        str(students_bundle),
        "--out",
        str(tmp_path),
        "--labels",
        "0-3",
        "--shards",
        "2",
        "--threads",
        "1",
    ]
    assert main([*words, "--shard", "0", "--plan", "student"]) == 0
    assert json.loads((tmp_path / "_set.json").read_text())["plan"] == "student"
    assert main([*words, "--shard", "1", "--plan", "student"]) == 0
    capsys.readouterr()
    assert main([*words, "--plan", "auto"]) == 2
    assert f"{tmp_path}/_set.json: the shards here are of plan student" in capsys.readouterr().err


def test_guidance_in_an_interval(continuous_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--labels", "0-2", "--guidance", "2", "--threads", "1", "--shards", "1", "--out", str(tmp_path)]
    command = ["generate", str(continuous_bundle), *words]
    assert main([*command, "--guidance-interval", "0.25", "0.75"]) == 0
    found = read_tar(tmp_path)
    with Sampler.open(continuous_bundle, threads=1) as sampler:
        images = sampler.sample([0, 1, 2], guidance=Guidance(2.0, interval=(0.25, 0.75)))
    assert all(np.array_equal(pixels(found[f"{g:09d}.png"]), images[g, ..., 0]) for g in range(3))
    assert main(command) == 2
    assert "guidance_interval (0.25, 0.75), this command asks for (0.0, 1.0)" in capsys.readouterr().err


def test_another_bundle_and_shards_of_nobody_knows_what_are_refused(
    continuous_bundle: Path, tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    words = (*SET, "--labels", "0-2", "--shards", "3", "--out", str(tmp_path))
    assert main(["generate", str(tiny_bundle), *words, "--shard", "0"]) == 0
    assert main(["generate", str(continuous_bundle), *words]) == 2
    assert "the shards here are of another bundle; name another folder" in capsys.readouterr().err
    (tmp_path / "_set.json").unlink()
    assert main(["generate", str(tiny_bundle), *words]) == 2
    assert "_set.json: is missing, so nobody can tell what the shards beside it are made of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shards", "7"), "--shards 7: 11 images make 6 batches of 2, so give a number from 1 to 6"),
        (("--shards", "0"), "--shards 0: 11 images make 6 batches of 2"),
        (("--shards", "200000", "--count", "1000000"), "--shards 200000: give a number of at most 100,000"),
        (("--shards", "3", "--seed", str(1 << 63)), "seed 9223372036854775808: give a number below 2^63"),
        (("--shards", "3", "--shard", "3"), "--shard 3: give a number from 0 to 2"),
        (("--shards", "3", "--format", "zip"), "--format zip: expected one of webdataset, parquet"),
        (("--shards", "3", "--labels", "0-99"), "--count 11: give a number of at least 100"),
        (("--shards", "3", "--labels", "12"), "label 12 is not a class of this model"),
        (("--shards", "3", "--guidance", "-1"), "guidance -1.0 is not a weight"),
        (("--shards", "3", "--temperature", "0"), "temperature 0.0"),
        (("--shards", "3", "--seed", "-1"), "seed -1 is not a whole number from 0"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "sample"])
def test_wrong_use_is_one_line(
    tiny_bundle: Path, tmp_path: Path, capsys: Any, command: str, words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    assert main([command, str(tiny_bundle), *SET, "--out", str(out), *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not out.exists()


def test_options_of_one_way_are_refused_by_the_other(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    sample, out = ["sample", str(tiny_bundle), *SET], ["--out", str(tmp_path / "out")]
    for command, message in (
        ([*sample, "--shard", "1"], "--shard: is for a set in shards; give --shards as well"),
        ([*sample, "--missing"], "--missing: is for a set in shards"),
        ([*sample, "--shards", "2"], "--out samples.png: shards go into a folder; name one"),
        ([*sample, "--shards", "2", *out, "--columns", "2"], "--columns: is not for a set in shards"),
        (
            ["generate", str(tiny_bundle), *SET, "--shards", "2", *out, "--actors", "2"],
            "--actors 2: give --ray as well",
        ),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "batch", "shards"), [(1, 1, 1), (11, 2, 5), (11, 2, 6), (1000, 8, 7), (57, 64, 1)])
def test_a_split_has_each_image_once_and_cuts_between_batches(count: int, batch: int, shards: int) -> None:
    parts = [shard_images(count, batch, shards, shard) for shard in range(shards)]
    assert [image for part in parts for image in part] == list(range(count))
    assert all(part.start % batch == 0 and len(part) > 0 for part in parts)
    batches = [-(-len(part) // batch) for part in parts]
    assert max(batches) - min(batches) <= 1
