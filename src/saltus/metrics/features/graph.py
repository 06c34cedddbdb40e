"""Any network as an ONNX file: a timm or torchvision model, or one of your own, exported once elsewhere.

An ONNX file is a graph of known operations and tensors; nothing in it is run as code, so a file from
elsewhere can compute wrong features and nothing worse. (TorchScript and .pt2 archives are read by
unpickling, and are not taken.) The network gets images [n, C, H, W] in [0, 255], float32, as its only
input, so preprocessing belongs into the graph, and its first output is the features [n, ...]:

    class Wrapped(torch.nn.Module):
        def forward(self, x):
            x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
            return net.forward_features((x / 255 - mean) / sd).mean((2, 3))

    torch.onnx.export(Wrapped(), (x,), "net.onnx", dynamic_shapes=({0: torch.export.Dim("n")},),
                      external_data=False)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saltus.metrics.features.network import LENGTH, FeatureNetwork

__all__ = ["graph_from", "session"]


class Graph(nn.Module):
    """An ONNX graph, computed on the CPU, or on CUDA where ONNX Runtime has it."""

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__()
        self._session = session(content, path)
        names = [i.name for i in self._session.get_inputs()]
        if len(names) != 1:
            got = ", ".join(names)
            raise ValueError(f"{path}: expected one input, images in [0, 255], got {got}; wrap the network")
        self._input = names[0]

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] in [0, 255] -> [n, D]."""
        found = self._session.run(None, {self._input: x.cpu().numpy()})[0]
        return torch.from_numpy(found).flatten(1).to(x.device)


def session(content: bytes, path: Path) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """ONNX Runtime's session of a file's content; the path is for messages."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("an ONNX file needs ONNX Runtime: pip install 'saltus[onnx]'") from None
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(content, providers=providers)
    except Exception as wrong:  # ONNX Runtime's errors have no common class
        why = " ".join(str(wrong).split())[:200]
        raise ValueError(
            f"{path}: expected a whole ONNX graph in one file (external_data=False), got {why}"
        ) from None


def graph_from(path: Path) -> FeatureNetwork:
    """The network of an .onnx file; its digest is that of the file.

    Raises:
        ValueError: for a file that is absent or no such graph.
        ImportError: ONNX Runtime is not installed.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected an .onnx file, found none; check the path")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:LENGTH]
    return FeatureNetwork(f"the ONNX graph {path.name}", digest, Graph(content, path))
