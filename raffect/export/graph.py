"""The modules that are exported: heads of every task, their mean and decisions, and pixels before.

They are written for tracing: nothing depends on values, and no shape but the number of samples
varies.

Shape letters: N samples, D feature, T features of a window, C outputs, H side of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raffect.encoders.tower import Encoder
from raffect.evaluation.ensemble import Ensemble
from raffect.heads.checkpoint import load_batch, load_head
from raffect.heads.head import MlpSpec
from raffect.heads.head_batch import normalise
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.mlp import fuse_norms
from raffect.predictions.rules import TINY, DecisionRules
from raffect.runs.pick import PickedHead

_CPU = torch.device("cpu")
_SCORES = {"multiclass": "probabilities", "multilabel": "probabilities", "regression": "values"}
_DECISIONS = {"multiclass": "class", "multilabel": "labels"}


class FoldedMlp(nn.Module):
    """An MLP in use, with each BatchNorm folded into the Linear before it.

    Args:
        spec: Its shape.
        layers: Weight (out, in) and bias (out,) of each Linear.
    """

    def __init__(self, spec: MlpSpec, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.normalise = spec.normalise
        self.layers = nn.ModuleList()
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            # Copies: views would be saved with all that lies in the same memory
            linear.weight.data, linear.bias.data = weight.float().clone(), bias.float().clone()
            self.layers.append(linear)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C) of raw features (N, D)."""
        x = normalise(x, self.normalise)
        for k, layer in enumerate(self.layers):
            x = layer(x.relu() if k else x)
        return x


class TaskGraph(nn.Module):
    """Heads of one task: the weighted mean of their probabilities, and decisions on it.

    Args:
        heads: Folded MLPs, or heads as ordinary modules.
        rules: Weights, thresholds and bias. Means over time are left out.
    """

    weight: Tensor
    level: Tensor

    def __init__(self, heads: Sequence[nn.Module], rules: DecisionRules) -> None:
        super().__init__()
        self.heads, self._kind = nn.ModuleList(heads), loss_kind(rules.task)
        self.register_buffer("weight", torch.tensor(rules.shares))
        levels = torch.tensor(rules.bias or rules.thresholds, dtype=torch.float32)
        self.register_buffer("level", levels)
        self._has_bias = any(rules.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Probabilities or values (N, C), then classes (N,) or labels (N, C), if any."""
        found = torch.stack([self._kind.probabilities(head(x)) for head in self.heads])
        scores = torch.einsum("p,pnc->nc", self.weight, found)
        if self._kind.task.kind == "multiclass":
            biased = scores.clamp(min=TINY).log() + self.level if self._has_bias else scores
            return scores, biased.argmax(1)
        if self._kind.task.kind == "multilabel":
            return scores, (scores >= self.level).to(torch.int8)
        return (scores,)


class HeadsGraph(nn.Module):
    """All tasks of a file: features in, the named outputs of each task out.

    Args:
        ensembles: One a task.
    """

    def __init__(self, ensembles: Sequence[Ensemble]) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(
            TaskGraph([load_module(head) for head in one.heads], one.rules) for one in ensembles
        )
        self._names = [output_names(one.rules) for one in ensembles]

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Outputs by name of raw features, float32, shape (N, D) or (N, T, D)."""
        found = {}
        for names, task in zip(self._names, self.tasks, strict=True):
            found |= dict(zip(names, task(features), strict=True))
        return found


class PixelsGraph(nn.Module):
    """An encoder and heads: pictures in, the same outputs out.

    Preprocessing is the encoder's own, whose resize gives exactly PIL's pixels. Features are
    rounded to float16 in between, as a bank stores them.

    Args:
        encoder: In float32 on the CPU.
        heads: Read its features.
    """

    def __init__(self, encoder: Encoder, heads: HeadsGraph) -> None:
        super().__init__()
        self.tower, self.heads, self._encoder = encoder.tower, heads, encoder

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Outputs by name of pictures, uint8, RGB, shape (N, H, H, 3)."""
        preprocess = self._encoder.preprocess
        batch = preprocess.normalise(preprocess.resize(pixels))
        return self.heads(self._encoder.forward(batch).to(torch.float16).float())


def load_module(head: PickedHead) -> nn.Module:
    """A head as a module for a graph, in float32 and evaluation mode."""
    batch, _ = load_batch(head.folder, _CPU)
    if isinstance(batch.spec, MlpSpec):
        layers = fuse_norms(batch.spec, batch.rows, batch.buffers)
        return FoldedMlp(batch.spec, [(weight[0], bias[0, 0]) for weight, bias in layers]).eval()
    return load_head(head.folder)[0].float().eval()


def output_names(rules: DecisionRules) -> tuple[str, ...]:
    """Names of a task's outputs, such as ``expr_probabilities`` and ``expr_class``."""
    task = rules.task
    ends = [_SCORES[task.kind], *filter(None, [_DECISIONS.get(task.kind)])]
    return tuple(f"{task.name}_{end}" for end in ends)
