"""A tower in another runtime, for rows of tower.py.

They are no options of raffect: each would be another arithmetic for every bank. Their packages are
asked for where they are measured:

    uv run --with onnx --with onnxscript --with onnxruntime --with openvino \\
        python benchmarks/tower.py --builds open_clip raffect onnxruntime openvino
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RUNTIMES = ("onnxruntime", "openvino")


class OnnxRuntime(nn.Module):
    """A tower in onnxruntime on the CPU, in float32.

    Args:
        tower: In float32, in evaluation mode.
        example: A batch of its static shape.
        folder: For its file.
    """

    def __init__(self, tower: nn.Module, example: Tensor, folder: Path) -> None:
        super().__init__()
        runtime: Any = importlib.import_module("onnxruntime")
        file = folder / "tower.onnx"
        torch.onnx.export(tower, (example,), file, dynamo=True, verbose=False)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        self.session = runtime.InferenceSession(file, options, providers=providers)
        self.input = self.session.get_inputs()[0].name

    def forward(self, batch: Tensor) -> Tensor:
        """Vectors of a batch."""
        (out,) = self.session.run(None, {self.input: batch.numpy()})
        return torch.from_numpy(out)


class OpenVino(nn.Module):
    """A tower in OpenVINO on the CPU.

    Args:
        tower: In float32, in evaluation mode.
        example: A float32 batch of its static shape.
        precision: In which OpenVINO computes.
    """

    def __init__(self, tower: nn.Module, example: Tensor, precision: str) -> None:
        super().__init__()
        runtime: Any = importlib.import_module("openvino")
        exported = torch.export.export(tower, (example,))
        model = runtime.convert_model(exported)
        options = {
            # On a CPU with AMX its default is bfloat16.
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.compiled = runtime.compile_model(model, "CPU", options)

    def forward(self, batch: Tensor) -> Tensor:
        """Vectors of a batch."""
        return torch.from_numpy(self.compiled(batch.float().numpy())[0])
