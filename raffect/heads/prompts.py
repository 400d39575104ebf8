"""Learnt prompts: a head whose weights are vectors of tokens, read by a frozen text tower.

Both towers are frozen. A class has S descriptors of M learnt tokens each (Zhou et al. 2022: CoOp,
with one; Li et al. 2024: the first stage of CLIPER, with 5 of 4 tokens), and its logit is the
largest cosine of the image with one of them times the scale of the weights. Labels such as AU are
each compared with one more group of descriptors, of a face without them, as
`raffect zeroshot` compares them with texts of a face at rest.

The text tower is handed in, and is needed in training alone: a saved head has the vectors that
follow from its tokens beside them.

Shape letters: P heads, B samples, C outputs, G groups of descriptors (C, and one more for labels),
S descriptors of a group, M tokens of a descriptor, W width of the text tower, D feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import vmap

from raffect.errors import RaffectError
from raffect.heads.head_batch import Buffers, HeadBatch, Shapes, normalise, to_cpu
from raffect.heads.module_batch import HeadModule, ModuleBatch, ModuleSpec
from raffect.heads.random import weights_generator
from raffect.heads.spec_values import Bounds, refuse
from raffect.heads.workers import Workers
from raffect.recipe import MOST_WIDTH, HeadConfig

SPREAD = 0.02
"""Standard deviation of drawn tokens, as in CoOp; CLIP's own tokens began with it as well."""
_MOST_SCALE = 1e4
_HEXADECIMAL = 64

ReadPrompts = Callable[[Tensor], Tensor]
"""Vectors (G, S, D) of prompts from those of their learnt tokens (G, S, M, W); torch.func can
batch and differentiate it."""


@dataclasses.dataclass(frozen=True)
class PromptSpec(ModuleSpec):
    """Shape of learnt prompts.

    Attributes:
        dim: D.
        outputs: C.
        has_rest: Whether outputs are labels, which are compared with one more group.
        descriptors: S.
        tokens: M.
        width: W.
        scale: By which the weights multiply cosines before a softmax.
        text_sha256: Fingerprint of the text tower.
        prompts_sha256: Fingerprint of the words that the tokens start from and of those behind
            them: heads of other words are no heads of the same run.
        read: The text tower; None for use alone. It is neither compared nor saved.
        start: Tokens to begin with, float32 on the CPU, shape (G, S, M, W), NaN where they are
            drawn; None to draw all. Likewise.
    """

    dim: int
    outputs: int
    has_rest: bool
    descriptors: int
    tokens: int
    width: int
    scale: float
    text_sha256: str
    prompts_sha256: str
    read: ReadPrompts | None = dataclasses.field(default=None, compare=False, repr=False)
    start: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)

    kind = "prompts"
    bounds: ClassVar[Bounds] = dict.fromkeys(
        ("dim", "outputs", "descriptors", "tokens", "width"), (1, MOST_WIDTH)
    )
    flags: ClassVar[Sequence[str]] = ("has_rest",)

    @property
    def groups(self) -> int:
        """G."""
        return self.outputs + int(self.has_rest)

    @property
    def weights(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.weights`."""
        return {"tokens": (self.groups, self.descriptors, self.tokens, self.width)}

    @property
    def buffers(self) -> Shapes:
        """The prompts' vectors; while a text tower is there they follow from the tokens."""
        return {"vectors": (self.groups, self.descriptors, self.dim)}

    @classmethod
    def from_config(
        cls, config: HeadConfig, dim: int, outputs: int, *, compares: bool = False
    ) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_config`: a recipe alone does not make one."""
        raise RaffectError("head.kind prompts: a text tower is needed; use `raffect learn-prompts`")

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """Tokens of ``start``, others from a normal distribution, as in CoOp."""
        shape = self.weights["tokens"]
        drawn = SPREAD * torch.randn(shape, generator=weights_generator(seed))
        if self.start is not None:
            drawn = torch.where(self.start.isnan(), drawn, self.start)
        return drawn.flatten()

    def build(
        self,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> HeadBatch:
        """See `raffect.heads.head_batch.HeadSpec.build`."""
        return PromptBatch(self, rows, buffers, workers)

    def module(self) -> HeadModule:
        """See `raffect.heads.head_batch.HeadSpec.module`."""
        return PromptHead(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_json`."""
        spec = super().from_json(content, where)
        if type(spec.scale) not in (int, float) or not 0 < spec.scale <= _MOST_SCALE:
            raise refuse("scale", spec.scale, f"more than 0, at most {_MOST_SCALE:g}", where)
        for name in ("text_sha256", "prompts_sha256"):
            text = getattr(spec, name)
            if not isinstance(text, str) or len(text) != _HEXADECIMAL:
                raise refuse(name, text, f"a text of {_HEXADECIMAL} digits", where)
        return spec


class PromptHead(HeadModule):
    """One head of learnt prompts.

    Args:
        spec: Its shape, and in training the text tower.

    Source:
        Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", with contexts of each
        class; Li et al. 2024, "CLIPER", section 3.2: several descriptors a class, and the largest.
        Deviation: the scale is that of the weights and is not learnt, as in CoOp.
    """

    vectors: Tensor

    def __init__(self, spec: PromptSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = nn.Parameter(torch.zeros(spec.weights["tokens"]))
        self.register_buffer("vectors", torch.zeros(spec.buffers["vectors"]))

    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        """Logits (B, C) of raw features (B, D)."""
        vectors = self.vectors
        if training:
            assert self.spec.read is not None  # training has a text tower
            vectors = self.spec.read(self.tokens)
        # A batch of one product, to which vmap adds; see `raffect.encoders.text_tower`.
        x, flat = normalise(x, "l2"), normalise(vectors, "l2").flatten(0, 1)
        cosines = torch.bmm(x[None], flat.mT[None])[0].unflatten(1, vectors.shape[:2])
        largest = self.spec.scale * cosines.amax(2)
        if self.spec.has_rest:
            return largest[:, :-1] - largest[:, -1:]
        return largest


class PromptBatch(ModuleBatch):
    """P heads of learnt prompts.

    The vectors of a head are always those of its tokens as they are now: nothing reads the buffer
    of them while a text tower is there.
    """

    def predictor(self, rows: Tensor, buffers: Buffers) -> Callable[[Tensor], Tensor]:
        """See `raffect.heads.head_batch.HeadBatch.predictor`; prompts are read once for all."""
        return super().predictor(rows, self._follow(rows, buffers))

    def state(self, head: int) -> dict[str, Tensor]:
        """See `raffect.heads.head_batch.HeadBatch.state`; with the vectors of these very tokens."""
        part = slice(head, head + 1)
        own = {name: buffer[part] for name, buffer in self.buffers.items()}
        found = self._follow(self.rows[part], own)
        return super().state(head) | {name: to_cpu(buffer[0]) for name, buffer in found.items()}

    @torch.no_grad()
    def _follow(self, rows: Tensor, buffers: Buffers) -> Buffers:
        """The buffers that belong to some rows."""
        spec = self.spec
        assert isinstance(spec, PromptSpec)
        if spec.read is None:
            return buffers
        read = vmap(spec.read) if self._at_once else spec.read
        tokens = self._split(self.spec.views(rows)["tokens"])
        return {"vectors": self._join([read(part) for part in tokens])}
