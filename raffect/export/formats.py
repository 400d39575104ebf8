"""The formats of an export: how each file is written, and how its users' runtime runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from raffect.errors import RaffectError, how_to_add, require
from raffect.export import loader
from raffect.export.graph import FoldedMlp, HeadsGraph
from raffect.export.records import About

Outputs = dict[str, np.ndarray]
"""Probabilities, values and decisions by name."""
_MOST_IN_ONE = 1_500_000_000
"""Bytes of weights that still go into one ONNX file, which holds at most 2 GiB."""
_TRACED = 2
"""Samples of the trace: of one alone, torch would take the number for a constant."""


class Format(ABC):
    """One format.

    Attributes:
        file: Name of the file.
        packages: What has to be installed beside raffect.
        runtime: The package whose version is recorded as that of the runtime.
    """

    file: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    runtime: ClassVar[str]

    def require_packages(self) -> None:
        """Refuse to begin without them.

        Raises:
            RaffectError: Names the extra.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        require(
            not missing,
            f"--format {self.file.rpartition('.')[2]}: {' and '.join(missing)} not installed; "
            + how_to_add("export"),
        )

    @property
    def runtime_version(self) -> str:
        """``onnxruntime 1.32.0``."""
        return f"{self.runtime} {metadata.version(self.runtime)}"

    @abstractmethod
    def write(self, folder: Path, graph: nn.Module, example: Tensor, about: About) -> None:
        """Write the file into a folder.

        Args:
            folder: Where.
            graph: In evaluation mode.
            example: Input of the shape that the graph takes, one sample or more.
            about: Its metadata.

        Raises:
            RaffectError: If the graph cannot be exported so.
        """

    @abstractmethod
    def open(self, folder: Path) -> Callable[[np.ndarray], Outputs]:
        """What runs the file as its users will."""


class Safetensors(Format):
    """Folded weights of MLPs."""

    file, runtime = "model.safetensors", "numpy"

    def write(self, folder: Path, graph: nn.Module, example: Tensor, about: About) -> None:
        """See `Format.write`."""
        assert isinstance(graph, HeadsGraph)
        tensors = {}
        for task, about_task in zip(graph.tasks, about.tasks, strict=True):
            for head, named in zip(task.heads, about_task.heads, strict=True):  # ty: ignore
                require(
                    isinstance(head, FoldedMlp),
                    f"--format safetensors: a head of kind {named.kind} is more than layers of "
                    "weights, and mlp alone can be written so; expected onnx or pt2",
                )
                for name, tensor in head.layers.state_dict().items():
                    tensors[f"{named.name}.{name}"] = tensor.contiguous()
        texts = about.as_texts() | {"format": "pt"}  # as the Hub and transformers expect it
        # In memory first: safetensors would have a full disk for a fault of its own
        (folder / self.file).write_bytes(safetensors.torch.save(tensors, metadata=texts))

    def open(self, folder: Path) -> Callable[[np.ndarray], Outputs]:
        """See `Format.open`."""
        return lambda x: loader.predict(folder / self.file, x)


class Onnx(Format):
    """A graph for onnxruntime and others."""

    file, runtime = "model.onnx", "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, folder: Path, graph: nn.Module, example: Tensor, about: About) -> None:
        """See `Format.write`; weights of 1.5 GB and more lie in a second file beside it."""
        names = [name for task in about.tasks for name in task.outputs]
        with _explained(about.file):
            program = torch.onnx.export(
                trace(graph, example, about),
                dynamo=True,
                input_names=[about.input],
                output_names=names,
                verbose=False,
            )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces, with paths of this machine
        # The number of samples by its name, where the exporter has one of its own
        from onnxscript import ir

        for value in (*program.model.graph.inputs, *program.model.graph.outputs):
            assert value.shape is not None
            value.shape = ir.Shape(["N", *value.shape[1:]])
        program.model.metadata_props.update(about.as_texts())
        size = sum(weight.nbytes for weight in graph.state_dict().values())
        program.save(folder / self.file, external_data=size > _MOST_IN_ONE)

    def open(self, folder: Path) -> Callable[[np.ndarray], Outputs]:
        """See `Format.open`."""
        import onnxruntime

        providers = ["CPUExecutionProvider"]
        session: Any = onnxruntime.InferenceSession(folder / self.file, providers=providers)
        (given,) = session.get_inputs()
        names = [output.name for output in session.get_outputs()]
        return lambda x: dict(zip(names, session.run(names, {given.name: x}), strict=True))


class Pt2(Format):
    """A graph for torch, without raffect."""

    file, runtime = "model.pt2", "torch"

    def write(self, folder: Path, graph: nn.Module, example: Tensor, about: About) -> None:
        """See `Format.write`."""
        with _explained(about.file):
            program = trace(graph, example, about)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # has paths of this machine
            # In memory first: on a full disk torch would end the whole process
            content = io.BytesIO()
            torch.export.save(program, content, extra_files=about.as_texts())
        (folder / self.file).write_bytes(content.getbuffer())

    def open(self, folder: Path) -> Callable[[np.ndarray], Outputs]:
        """See `Format.open`."""
        run = torch.export.load(folder / self.file).module()
        return lambda x: {name: out.numpy() for name, out in run(torch.from_numpy(x)).items()}


FORMATS: dict[str, Format] = {"safetensors": Safetensors(), "onnx": Onnx(), "pt2": Pt2()}
"""By the word of ``--format``."""


def trace(graph: nn.Module, example: Tensor, about: About) -> torch.export.ExportedProgram:
    """A graph of any number of samples."""
    x = example[:1].expand(_TRACED, *example.shape[1:]).contiguous()
    # Matrices that modules keep are made now: those of the trace would be no real tensors
    with torch.no_grad():
        graph(x)
    dynamic: Any = {about.input: {0: torch.export.Dim("N", min=1)}}
    return torch.export.export(graph, (x,), dynamic_shapes=dynamic)


@contextlib.contextmanager
def _explained(file: str) -> Generator[None]:
    """Without the exporters' remarks on their own work; their faults in one line.

    Raises:
        RaffectError: If a module holds what cannot be exported: exporters raise nearly anything.
    """
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise RaffectError(
            f"{file}: torch cannot export this encoder or head ({reason}); what always can are "
            "heads of kind mlp and open_clip's own transformers; try another --format, or --input "
            "features"
        ) from error
    finally:
        logger.setLevel(level)
