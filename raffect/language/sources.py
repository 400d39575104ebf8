"""What texts are compared with: features as they are, their mean in a window, or a trained head.

A source gives vectors of samples and of texts that can be compared. With the texts of some classes
fixed it is a head like any other (`raffect.heads.compared`).

Shape letters: N samples, D feature, E vector, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from raffect.bank.windows import Window
from raffect.encoders.text import TextIdentity
from raffect.heads.compared import ComparedSpec
from raffect.heads.head_batch import EmbeddingSpec, HeadBatch
from raffect.heads.pooled import PooledSpec
from raffect.heads.samples import Samples
from raffect.language.classifiers import Classifier, build_batch
from raffect.recipe import HeadConfig, LossConfig, Recipe, SamConfig
from raffect.runs.windows import window_of

_VECTORS = 32_768
"""Features that are turned into vectors at once."""


@dataclass(frozen=True)
class Source:
    """What gives vectors.

    Attributes:
        recipe: Of its heads, but for the texts.
        name: Of the run that trained it; empty for features, which nothing trained.
        spec: The embedding head; None for single features as they are.
        state: Its tensors, as `raffect.heads.head_batch.HeadBatch.state` has them.
    """

    recipe: Recipe
    name: str = ""
    spec: EmbeddingSpec | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def window(self) -> Window:
        """The shape of a sample."""
        return window_of(self.recipe.head)

    def embed_texts(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of texts, (N, D), as a head compares them: of length 1, float64, (N, E)."""
        assert self.spec is not None
        texts = torch.from_numpy(vectors.astype(np.float64))
        state = {name: tensor.double() for name, tensor in self.state.items()}
        return self.spec.embed_texts(state, texts).detach().numpy()

    @torch.no_grad()
    def embed(self, samples: Samples) -> Samples:
        """The same samples by their vectors, float32, (N, E); features themselves stay as are."""
        if self.spec is None:
            return samples
        heads = self.spec.build_one(self.state, samples.y.device)
        run = heads.predictor(heads.rows, heads.buffers)
        chunk, parts = max(1, _VECTORS // samples.features_per_sample), []
        for start in range(0, len(samples), chunk):
            part = samples.part(slice(start, start + chunk))
            parts.append(run(part.samples().to(heads.rows.dtype))[0].float())
        return replace(samples, x=torch.cat(parts), window=None)

    @property
    def normalise(self) -> str:
        """How a linear classifier has to normalise what `embed` gives."""
        return "l2" if self.spec is None else "none"

    def compose(self, classifier: Classifier, device: torch.device) -> HeadBatch:
        """The head that this source and the texts of some classes are together."""
        if self.spec is None:
            return build_batch([classifier], device)
        spec = ComparedSpec(self.spec, len(classifier.bias))
        state = {f"inner.{name}": tensor for name, tensor in self.state.items()}
        dtype = next(iter(self.state.values())).dtype
        state["classes"] = torch.from_numpy(classifier.weight).to(dtype)
        state["offset"] = torch.from_numpy(classifier.bias).to(dtype)
        return spec.build_one(state, device)


def plain_source(task: str, window: Window, encoder: TextIdentity) -> Source:
    """What a trained head is compared with: the mean of the same features, which nothing trained.

    Args:
        task: Name of the task.
        window: The shape of a sample.
        encoder: Of the texts.
    """
    base = Recipe(task=task, epochs=1, loss=LossConfig(alpha=1.0), sam=SamConfig(rho=0.0))
    head = HeadConfig(depth=0, dropout=0.0, normalise="l2")
    if window.length == 1:
        return Source(replace(base, head=head))
    pooled = replace(head, kind="pooled", window=window.length, stride=window.stride)
    state = {"logit_scale": torch.tensor(math.log(encoder.scale))}
    return Source(replace(base, head=pooled), spec=PooledSpec(encoder.dim), state=state)
