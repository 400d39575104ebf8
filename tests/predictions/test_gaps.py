"""Gaps are filled as numpy's interpolation fills them, video by video."""

import numpy as np

from raffect.predictions.gaps import HOW, fill_gaps


def key_of(video, frame):
    return (np.asarray(video, np.int64) << 32) | np.asarray(frame, np.int64)


def fill(known, scores, wanted, prior, rows=7):
    filling = fill_gaps(known, wanted)
    parts = list(filling.iter_scores(scores, prior, rows))
    assert [part.start for part, _ in parts] == list(range(0, len(wanted), rows))
    return np.concatenate([values for _, values in parts]), [HOW[k] for k in filling.how]


def test_scores_are_numpys_interpolation_within_each_video():
    rng = np.random.default_rng(0)
    for case in range(200):
        # Predicted frames of some videos, and wanted ones in any order
        lengths = rng.integers(0, 6, rng.integers(1, 5))
        frames = [np.sort(rng.choice(40, n, replace=False)) + 1 for n in lengths]
        scores = [rng.random((n, 3)).astype(np.float32) for n in lengths]
        known = np.concatenate([key_of(video, frame) for video, frame in enumerate(frames)])
        wanted = [(v, f) for v in range(len(lengths) + 1) for f in rng.integers(1, 60, 9)]
        rng.shuffle(wanted)
        prior = np.array([0.1, 0.2, 0.7], np.float32)
        video, frame = np.array(wanted).T
        found, how = fill(known, np.concatenate(scores), key_of(video, frame), prior)
        # np.interp holds the first and the last value outward, too
        for row, (v, f) in enumerate(wanted):
            if v == len(lengths) or not lengths[v]:
                assert how[row] == "prior", case
                np.testing.assert_array_equal(found[row], prior)
                continue
            expected = [np.interp(f, frames[v], scores[v][:, k]) for k in range(3)]
            np.testing.assert_allclose(found[row], expected, atol=1e-6)
            inside = frames[v][0] < f < frames[v][-1]
            kinds = "predicted" if f in frames[v] else "interpolated" if inside else "held"
            assert how[row] == kinds, case


def test_a_predicted_frame_keeps_its_scores_to_the_bit():
    scores = np.random.default_rng(1).random((50, 8)).astype(np.float32)
    known = key_of(np.arange(50) // 10, np.arange(50) % 10 * 3 + 1)
    found, how = fill(known, scores, known, scores[0])
    np.testing.assert_array_equal(found, scores)
    assert set(how) == {"predicted"}


def test_nothing_predicted_is_the_prior_everywhere():
    prior = np.array([0.25, 0.75], np.float32)
    empty = np.empty((0, 2), np.float32)
    found, how = fill(np.empty(0, np.int64), empty, key_of([0, 1], [1, 9]), prior)
    assert how == ["prior", "prior"]
    np.testing.assert_array_equal(found, [prior, prior])
