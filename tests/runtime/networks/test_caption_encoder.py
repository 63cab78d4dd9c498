"""Captions to images with only the bundle and tokenizers, and the errors for bad captions."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.networks.caption_encoder import CaptionEncoder, encode_once
from starflow.runtime.plain.errors import BundleError, UsageError
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
    encoder = CaptionEncoder(bundle, bundle.manifest.text, threads=1)
    first = encoder.null
    encoded = encoder.encode(["sun", "sun"])
    np.testing.assert_array_equal(encoded[0], encoded[1])
    encoder.close()
    assert encoder.null is first  # the network is gone, and not needed


def test_an_encoder_for_a_few_captions_says_the_same(captioned_bundle: Path) -> None:
    bundle = Bundle.open(captioned_bundle)
    assert bundle.manifest.text
    encoder = CaptionEncoder(bundle, bundle.manifest.text, threads=1)
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
    with Sampler.open(damaged, threads=1) as sampler, pytest.raises(BundleError, match=r"tokenizer\.json: is not a"):
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
