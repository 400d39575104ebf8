"""A small head of its own kind, with everything that a module by torch.func may have."""

import dataclasses
import math
import weakref

import torch
from torch import nn

from raffect.heads.head_batch import EmbeddingSpec
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.samples import Samples
from tests.helpers.small_heads import DIM, make_samples

WINDOW = 3


@dataclasses.dataclass(frozen=True)
class AttentiveSpec(EmbeddingSpec, ModuleSpec):
    """Attention over a window, a learnt temperature, dropout and a uniform number."""

    dim: int = DIM
    width: int = 8
    outputs: int = 8
    uniform: int = 1
    penalties: int = 0

    kind = "attentive"

    @property
    def length(self):
        return self.outputs

    @property
    def weights(self):
        return {
            "logit_scale": (),
            "inputs.weight": (self.width, self.dim),
            "inputs.bias": (self.width,),
            "norm.weight": (self.width,),
            "norm.bias": (self.width,),
            "qkv.weight": (3 * self.width, self.width),
            "answer.weight": (self.outputs, self.width),
            "answer.bias": (self.outputs,),
        }

    @property
    def num_noise(self):
        return self.width

    @property
    def num_uniform(self):
        return self.uniform

    @property
    def num_penalties(self):
        return self.penalties

    def initial_row(self, seed, config):
        row = torch.randn(self.num_weights, generator=torch.Generator().manual_seed(seed)) / 3
        self.views(row[None])["logit_scale"].fill_(math.log(5))
        return row

    def module(self):
        return Attentive(self)

    @classmethod
    def from_json(cls, content, where):
        return cls(**content)


class Attentive(HeadModule):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.inputs = nn.Linear(spec.dim, spec.width)
        self.norm = nn.LayerNorm(spec.width)
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.answer = nn.Linear(spec.width, spec.outputs)

    def forward(self, x, noise=None, *, training=False):
        x = x[:, None] if x.ndim == 2 else x
        missing = x.isnan().any(-1)
        hidden = self.norm(self.inputs(x.masked_fill(missing[..., None], 0)))
        queries, keys, values = self.qkv(hidden).chunk(3, -1)
        lowest = torch.finfo(x.dtype).min
        scores = (queries @ keys.mT / self.spec.width**0.5).masked_fill(missing[:, None], lowest)
        pooled = nn.functional.gelu(hidden[:, 0] + (scores.softmax(-1) @ values).mean(1))
        if noise is not None:
            factors, numbers = noise.split([self.spec.num_noise, self.spec.num_uniform], -1)
            pooled = pooled * factors + numbers.sum(-1, keepdim=True)
        vectors = nn.functional.normalize(self.answer(pooled), dim=-1) * self.logit_scale.exp()
        if training and self.spec.penalties:
            return torch.cat([vectors, pooled.square().mean(-1, keepdim=True)], -1)
        return vectors


class Watched(Attentive):
    """One that notes how many hidden tensors of earlier calls are still in memory."""

    alive: list
    counts: list

    def forward(self, x, noise=None, *, training=False):
        self.counts.append(sum(reference() is not None for reference in self.alive))
        hidden = self.inputs(x)
        self.alive.append(weakref.ref(hidden))
        return self.answer(hidden * self.logit_scale)


def spec_with(kind):
    """A spec of another module with the same tensors."""

    class Spec(AttentiveSpec):
        def module(self):
            return kind(self)

    return Spec()


def make_windows(task="expr", seed=0, rows=256):
    """Samples of windows over the rows of `make_samples`; some rows are not there."""
    samples = make_samples(task, seed, rows)
    generator = torch.Generator().manual_seed(seed)
    window = torch.randint(-1, rows, (rows, WINDOW), generator=generator)
    window[:, 0] = torch.arange(rows)
    return Samples(samples.x, samples.y, samples.video, samples.num_videos, window)
