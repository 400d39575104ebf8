"""How many samples find their own target first: by a search one by one."""

import numpy as np
import pytest
import torch

from raffect.heads.fit import count
from raffect.heads.head_batch import normalise
from raffect.heads.loss_kind import Truth
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.retrieval import CandidateVectors, count_hits
from raffect.metrics.retrieval import find_candidates
from tests.helpers.small_heads import (
    CAPTIONS,
    CPU,
    DIM,
    make_learner,
    make_recipe,
    make_samples,
    prior_of,
)


def brute_force(outputs, y, vectors):
    """Hits by one sort a sample, in float64."""
    unit = normalise(torch.from_numpy(vectors).double(), "l2")
    hits = []
    for output, (target, _) in zip(outputs, y, strict=True):
        block = range(len(unit))
        if len(np.unique(vectors, axis=0)) > 1024:
            block = range(target // 1024 * 1024, min(target // 1024 * 1024 + 1024, len(unit)))
        scores = [(unit[k] @ output).item() for k in block]
        best = block[int(np.argmax(scores))]
        hits.append(bool((vectors[best] == vectors[target]).all()))
    return np.array(hits)


@pytest.mark.parametrize("size", [16, 2500])
def test_hits_are_those_of_a_search_one_by_one(size):
    rng = np.random.default_rng(size)
    vectors = rng.normal(size=(size, 3)).astype(np.float16)
    vectors[5::7] = vectors[4::7][: len(vectors[5::7])]
    y = np.stack([rng.integers(0, size, 60), rng.integers(0, 4, 60)], 1)
    y[:5, 0], video = size - 1, rng.integers(0, 3, 60)
    outputs = torch.from_numpy(vectors[y[:, 0]] + rng.normal(size=(2, 60, 3)) * size**-0.5)
    targets = CandidateVectors.of(vectors, find_candidates(vectors, y), CPU)
    kind = loss_kind(CAPTIONS, targets)
    truth = Truth(torch.from_numpy(y), torch.from_numpy(video), 3)
    found = kind.count(outputs, truth).numpy()
    for head in range(2):
        hits = brute_force(outputs[head], y.tolist(), vectors)
        assert 2 < hits.sum() < 58
        for group in range(3):
            for number in range(4):
                here = (video == group) & (y[:, 1] == number)
                assert found[head, group, number, :2].tolist() == [hits[here].sum(), here.sum()]
        assert np.array_equal(kind.count(outputs[head : head + 1], truth)[0], found[head])


def test_hits_do_not_depend_on_how_many_samples_are_judged_at_once(monkeypatch):
    samples, recipe = make_samples("captions", seed=9), make_recipe("captions")
    kind, heads = prior_of("captions", samples).kind, make_learner([recipe], samples).heads
    whole = count(kind, heads, samples)
    monkeypatch.setattr("raffect.heads.fit._PREDICTIONS", 28)
    assert np.array_equal(count(kind, heads, samples), whole)


def test_a_head_that_says_nothing_has_no_more_than_chance():
    samples = make_samples("captions")
    kind = prior_of("captions", samples).kind
    truth = Truth(samples.y, samples.video, 1)
    counts = kind.count(torch.zeros(1, len(samples), DIM), truth)[0, 0]
    assert counts[:, 0].sum() == (samples.y[:, 0] == 0).sum()  # the first candidate, of ties
    assert counts[:, 2] == pytest.approx(counts[:, 1] / 12)


@pytest.mark.parametrize("count", [5, 3000])
def test_no_sample_has_no_hits(count):
    vectors = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float16)
    candidates = find_candidates(vectors, np.array([[0, 0], [1, 1]]))
    targets = CandidateVectors.of(vectors, candidates, CPU)
    none = torch.empty(0, dtype=torch.int64)
    assert targets.take(none, torch.float32).shape == (0, 4)
    hits = count_hits(
        torch.empty(2, 0, 4), Truth(none.view(0, 1).expand(0, 2), none, 3), 2, targets
    )
    assert hits.shape == (2, 3, 2, 4)
    assert not hits.any()
