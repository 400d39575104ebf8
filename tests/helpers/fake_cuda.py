"""Learners and encoders on CUDA that is not there; see benchmarks/fake_cuda.py."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from raffect.encoders import preprocess, tower
from raffect.heads.fused_step import FusedStep
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.module_batch import ModuleBatch
from raffect.heads.retrieval import CandidateVectors
from raffect.heads.samples import Samples
from raffect.metrics.retrieval import find_candidates
from tests.helpers.small_heads import TASKS, make_samples, make_vectors, spec_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from fake_cuda import CUDA, NotCapturedError, Watch, differentiated, fake_cuda

__all__ = ["CUDA", "NotCapturedError", "Watch", "fake_cuda"]

_FORWARD, _BACKWARD = ModuleBatch.forward, ModuleBatch.backward

# Heads


def fake_prior(task):
    """Counts of the labels that `make_samples` gives; vectors of captions are on CUDA."""
    with _disable_current_modes():
        y = make_samples(task).y.numpy()
    found, vectors = None, make_vectors()
    if task == "captions":
        found = CandidateVectors.of(vectors, find_candidates(vectors, y), CUDA)
    return loss_kind(TASKS[task], found).count_prior(y)


def to_cuda(samples):
    """The same shapes and types on CUDA."""

    def move(tensor):
        return None if tensor is None else tensor.to(CUDA)

    x, y, video, window = map(move, (samples.x, samples.y, samples.video, samples.window))
    return Samples(x, y, video, samples.num_videos, window)


def fake_learner(recipes, spec=None, *, kernels=False):
    """A learner on CUDA at the start of an epoch, and its samples.

    It steps by torch's calls, or by our Triton kernels.
    """
    task = recipes[0].task
    learner = Learner(recipes, spec or spec_of(recipes[0]), fake_prior(task), CUDA)
    learner.way = FusedStep(learner).step if kernels else learner.eager_step
    samples = to_cuda(make_samples(task))
    learner._fill_order(learner._order(len(samples), 0), 0)
    return learner, samples


@torch.no_grad()
def capture_step(learner, samples):
    """What is captured of a step, after one that is launched as the first steps are.

    Returns its watch.
    """
    for captured in (False, True):
        with Watch(captured=captured) as watch:
            learner._gather_and_step(samples)
    return watch


@contextlib.contextmanager
def modules_traced():
    """Passes of `ModuleBatch`, which autograd differentiates, are traced on the device "meta"."""

    def forward(self, rows, batch, noise, *, update_buffers):
        self._last = rows, self.buffers, batch, noise
        return _trace(self, _outputs, *self._last)

    def backward(self, d_outputs):
        self.gradient.copy_(_trace(self, _gradient, *self._last, d_outputs))

    patches = {"forward": forward, "backward": backward}
    with mock.patch.multiple(ModuleBatch, **patches):
        yield


def _trace(heads, function, *args):
    """Run a function of the heads' twin, traced once."""
    kept = vars(heads).setdefault("_traces", {})
    if function not in kept:
        kept[function] = differentiated(partial(function, _twin(heads)), *args)
    return kept[function](*args)


def _twin(heads):
    """The same heads on "meta", of which all are one call as on CUDA."""
    with _disable_current_modes():
        twin = heads.spec.build(torch.empty(heads.rows.shape, device="meta"))
    twin._at_once = True
    return twin


def _outputs(twin, rows, buffers, batch, noise):
    twin.rows, twin.buffers = rows, buffers
    return _FORWARD(twin, rows, batch, noise, update_buffers=True)


def _gradient(twin, rows, buffers, batch, noise, d_outputs):
    _outputs(twin, rows, buffers, batch, noise)
    _BACKWARD(twin, d_outputs)
    return twin.gradient


# Encoders


@contextlib.contextmanager
def fake_encoder(config):
    """An encoder on CUDA: made as always on the CPU, then without values."""
    load = tower._load_tower

    def load_fake(source):
        with _disable_current_modes():
            visual, *rest = load(source)
        visual._apply(_as_fake)
        return visual, *rest

    patches = {"_load_tower": load_fake, "fingerprint": lambda visual: "0" * 64}
    _forget_matrices()
    with fake_cuda(), mock.patch.multiple(tower, **patches):
        yield tower.load_encoder(config, CUDA)
    _forget_matrices()


def _as_fake(tensor):
    if isinstance(tensor, FakeTensor):
        return tensor
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype)


def _forget_matrices():
    """What is kept a device; tensors without values must not stay there."""
    for kept in vars(preprocess).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()
