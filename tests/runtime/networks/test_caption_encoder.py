"""Captions to images with only the bundle and tokenizers, and the errors for bad captions."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow.runtime import Sampler
from starflow.runtime.backends.onnxruntime.networks import OnnxRuntimeNetworks
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.networks.caption_encoder import CaptionEncoder, encode_once
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.native_errors import panics_unprinted
from tests.edited_manifest import edit_manifest
from tests.text_encoders import published_features

CAPTIONS = ["a red apple", "two cats", "a red apple"]


def test_captions_stand_for_their_features(captioned_bundle: Path, t5_folder: Path) -> None:
    texts = [f"a {caption}" for caption in [*CAPTIONS, ""]]
    _, features = published_features(texts, t5_folder, 8)
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        noise = sampler.noise(3, seed=5)
        expected = sampler.generate(noise, features[:3], features[3], guidance=2.0)
        np.testing.assert_allclose(sampler.generate(noise, CAPTIONS, guidance=2.0), expected, atol=1e-4)
        np.testing.assert_allclose(sampler.generate(noise, np.array(CAPTIONS), guidance=2.0), expected, atol=1e-4)
        unguided = sampler.generate(noise, features[:3])
        assert np.abs(unguided - expected).max() > 1e-2
        np.testing.assert_allclose(sampler.generate(noise, CAPTIONS), unguided, atol=1e-4)
        np.testing.assert_allclose(sampler.encode_captions(CAPTIONS), features[:3], atol=1e-5)
        # One caption stands for all images, no caption for the empty one.
        alone = sampler.generate(noise, CAPTIONS[0])
        np.testing.assert_array_equal(alone, sampler.generate(noise, [CAPTIONS[0]]))
        np.testing.assert_allclose(alone[[0, 2]], unguided[[0, 2]], atol=1e-4)
        np.testing.assert_allclose(
            sampler.generate(noise), sampler.generate(noise, np.repeat(features[3:], 3, 0)), atol=1e-4
        )
        inverted = sampler.invert(unguided, CAPTIONS)
        np.testing.assert_allclose(inverted.noise, noise, atol=1e-2)
        images = sampler.sample(CAPTIONS, guidance=2.0, seed=5)
        np.testing.assert_array_equal(images, sampler.to_images(sampler.generate(noise, CAPTIONS, guidance=2.0)))


def test_equal_captions_and_the_empty_one_are_encoded_once(captioned_bundle: Path) -> None:
    bundle = Bundle.open(captioned_bundle)
    assert bundle.manifest.text
    sessions = OnnxRuntimeNetworks(bundle, threads=1)
    encoder = CaptionEncoder(bundle, sessions, bundle.manifest.text)
    first = encoder.null
    encoded = encoder.encode(["sun", "sun"])
    np.testing.assert_array_equal(encoded[0], encoded[1])
    sessions.close()
    assert encoder.null is first  # the network is gone, and not needed


def test_an_encoder_for_a_few_captions_says_the_same(captioned_bundle: Path) -> None:
    bundle = Bundle.open(captioned_bundle)
    assert bundle.manifest.text
    encoder = CaptionEncoder(bundle, OnnxRuntimeNetworks(bundle, threads=1), bundle.manifest.text)
    features, null = encode_once(bundle, CAPTIONS, threads=1)
    np.testing.assert_allclose(features, encoder.encode(CAPTIONS), atol=1e-5)
    np.testing.assert_allclose(null, encoder.null, atol=1e-5)


def test_long_captions_are_cut_with_a_warning(captioned_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        long = sampler.encode_captions(["red apple on the wall on the wall on the wall"])
        (record,) = caplog.records
        assert record.getMessage().startswith("caption 'red apple on the wall on the wall on the wall' is cut")
        assert "more than 8 tokens" in record.getMessage()
        assert long.shape == (1, 8, 32)
        assert long.any(axis=2).all()
        sampler.encode_captions(["a cat"])
        assert len(caplog.records) == 1


def test_bad_captions(captioned_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        for call in (sampler.sample, lambda captions: sampler.generate(sampler.noise(1), captions)):
            with pytest.raises(UsageError, match="the list of captions is empty"):
                call([])
        with pytest.raises(UsageError, match="3 condition for 2 images"):
            sampler.generate(sampler.noise(2), CAPTIONS)
    with Sampler.open(tiny_bundle, threads=1) as sampler, pytest.raises(UsageError, match="is not a class"):
        sampler.sample(CAPTIONS)
    with Sampler.open(tiny_bundle, threads=1) as sampler, pytest.raises(UsageError, match="takes no captions"):
        sampler.encode_captions(CAPTIONS)
    damaged = Path(shutil.copytree(captioned_bundle, tmp_path / "damaged"))
    path = damaged / "text" / "tokenizer.json"
    path.write_bytes(b"x" * path.stat().st_size)
    with (
        Sampler.open(damaged, threads=1) as sampler,
        pytest.raises(BundleError, match=r"tokenizer\.json: its content is not what"),
    ):
        sampler.sample(CAPTIONS)
    path.unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Sampler.open(damaged)


def test_tokenizers_are_an_extra(captioned_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        sampler.generate(sampler.noise(1), np.zeros((1, 8, 32), np.float32))  # features need no tokenizer
        with pytest.raises(UsageError, match=r"pip install '\.\[text\]' in a clone of starflow"):
            sampler.sample(CAPTIONS)


def test_captions_on_the_command_line(
    captioned_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text("a red apple\n\n two cats \n")
    (tmp_path / "empty.txt").write_text("\n")
    start = ["sample", str(captioned_bundle), "--threads", "1", "--guidance", "2"]
    files = [tmp_path / f"{index}.npy" for index in range(3)]
    given = (["--captions", "a red apple", "two cats"], ["--captions-file", str(tmp_path / "captions.txt")])
    for file, arguments in zip(files, (*given, [*given[0], "--count", "3"]), strict=False):
        assert main([*start, *arguments, "--out", str(tmp_path / "x.png"), "--latents", str(file)]) == 0
    first, second, third = map(np.load, files)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(third[:2], first, atol=1e-5)
    assert len(third) == 3
    capsys.readouterr()
    for name, expected in (("empty.txt", "holds no captions"), ("absent.txt", "No such file")):
        assert main([*start, "--captions-file", str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert main(["inspect", str(captioned_bundle)]) == 0
    assert "captions of up to 8 tokens in 'a {caption}'" in capsys.readouterr().out


def test_neither_torch_nor_transformers(captioned_bundle: Path) -> None:
    program = f"""
import sys
from starflow.runtime import Sampler
for name in ("torch", "transformers", "onnx"):
    sys.modules[name] = None
with Sampler.open({str(captioned_bundle)!r}, threads=1) as sampler:
    print(sampler.sample(["two cats"], guidance=2.0).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 8, 8, 1)"


@pytest.mark.parametrize("command", [("sample",), ("score", "x.npy")])
def test_a_label_does_not_pass_for_a_caption(
    captioned_bundle: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    name, *rest = command
    assert main([name, str(captioned_bundle), *rest, "--labels", "3"]) == 2
    assert capsys.readouterr().err.strip().endswith("this model has no classes; give captions: --captions")


def damage_tokenizer(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change tokenizer.json, and its size and digest in the manifest with it."""
    path = bundle / "text/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))
    content = path.read_bytes()
    stated = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["text"]["tokenizer"].update(stated))


LONGER = {"type": "Replace", "pattern": {"Regex": "a"}, "content": "a" * 10}
TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "padding of gigabytes": (
        lambda t: t["padding"].update(strategy={"Fixed": 400_000_000}),
        "pads to 400000000 tokens .* expected 8 on the right",
    ),
    "padding to a multiple of 0": (lambda t: t["padding"].update(pad_to_multiple_of=0), "expected 8 on the right"),
    "padding on the left": (lambda t: t["padding"].update(direction="Left"), "expected 8 on the right"),
    "no padding": (lambda t: t.update(padding=None), "pads to None tokens"),
    "no cut": (lambda t: t.update(truncation=None), "cuts to None"),
    "a longer stride than the text": (lambda t: t["truncation"].update(stride=100), "tokenizer.json: "),
    "growth": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [LONGER] * 9}),
        "may make a caption 1,000,000,000 times as long",
    ),
    "a token that no word has": (lambda t: t["padding"].update(pad_id=10**9), "ONNX Runtime cannot run it"),
    "no model": (lambda t: t.pop("model"), "is not a tokenizer"),
    "a regular expression that is none": (
        lambda t: t.update(normalizer={**LONGER, "pattern": {"Regex": "("}}),
        "is not a tokenizer",
    ),
    "a panic": (
        lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[none]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {},
            }
        ),
        "tokenizer.json: ",
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_hostile_tokenizer_is_one_line(
    kind: str,
    captioned_bundle: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change, found = TOKENIZERS[kind]
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    bundle = Path(shutil.copytree(captioned_bundle, tmp_path / "bundle"))
    damage_tokenizer(bundle, change)
    start = time.process_time()
    assert (
        main(["sample", str(bundle), "--threads", "1", "--captions", "a" * 40, "--out", str(tmp_path / "x.png")]) == 1
    )
    assert time.process_time() - start < 10
    captured = capfd.readouterr()  # what the process writes, libraries in Rust and C++ included
    assert captured.out == "" and captured.err.count("\n") == 1 and "internal error" not in captured.err
    assert re.search(found, captured.err)


def test_what_else_is_printed_meanwhile_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with panics_unprinted():
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"
    with pytest.raises(ValueError), panics_unprinted():
        os.write(2, b"a panic\n")
        raise ValueError
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("é".encode("latin1"), "it is not UTF-8 text"),
        ("a".encode("utf-16"), "it is not UTF-8 text"),
        (b"a " * 40_000, "has more than 65,536 characters in line 1"),
    ],
)
def test_captions_that_are_no_text(
    content: bytes, found: str, captioned_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_bytes(content)
    command = ["sample", str(captioned_bundle), "--threads", "1", "--captions-file", str(tmp_path / "captions.txt")]
    assert main([*command, "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert found in error and error.count("\n") == 1
