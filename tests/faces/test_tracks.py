"""Tracks: links, smoothing and places of faces, whole and in segments."""

import itertools

import numpy as np
import pytest

from raffect.faces.tracks import (
    FIELDS,
    MOST_MISSED,
    Face,
    confirm,
    join_tracks,
    link,
    margin_steps,
    overlap,
    place_faces,
    smooth_boxes,
)


def detections(*boxes):
    """Detections of a step, each given as x, y and side."""
    rows = np.full((len(boxes), len(FIELDS)), np.nan)
    for row, (x, y, side) in enumerate(boxes):
        rows[row, :5] = x, y, side, side, 0.5 + 0.01 * row
    return rows


def random_video(rng, steps):
    """Detections of a few faces that wander, miss steps, cross, and of false boxes."""
    people = rng.uniform(0, 150, (rng.integers(1, 5), 2))
    found = {}
    for step in range(steps):
        people += rng.normal(0, 6, people.shape)
        seen = [(*xy, 40) for xy in people if rng.random() > 0.25]
        seen += [(*rng.uniform(0, 150, 2), rng.uniform(20, 60)) for _ in range(rng.poisson(0.3))]
        found[step] = detections(*sorted(seen))
    return found


def test_overlap_is_that_of_counted_pixels():
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 20, (12, 4)).astype(float)
    boxes[:, 2:] += 1
    grids = np.zeros((12, 50, 50), bool)
    for grid, (x, y, w, h) in zip(grids, boxes.astype(int), strict=True):
        grid[y : y + h, x : x + w] = True
    for i, j in np.ndindex(12, 12):
        expected = (grids[i] & grids[j]).sum() / (grids[i] | grids[j]).sum()
        assert overlap(boxes, boxes)[i, j] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(40))
def test_segments_of_a_video_give_the_boxes_and_tracks_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    every, smooth = int(rng.integers(1, 6)), int(rng.integers(0, 4))
    total = int(rng.integers(30, 160))
    found = random_video(rng, (total - 1) // every + 1)
    links = link(found)
    whole = place_faces(found, links, smooth, every, total)
    # Segments anywhere, each with a few steps more
    cuts = sorted({1, total + 1, *rng.integers(2, total, 4).tolist()})
    around = margin_steps(smooth) * every
    nodes, joined, pieces = [], {}, {}
    for first, stop in itertools.pairwise(cuts):
        near = {
            s: rows for s, rows in found.items() if first - around <= 1 + s * every < stop + around
        }
        own = link(near)
        placed = place_faces(near, own, smooth, every, total)
        pieces |= {frame: placed.get(frame, []) for frame in range(first, stop)}
        mine = [(s, i) for s in near if first <= 1 + s * every < stop for i in range(len(near[s]))]
        nodes += mine
        joined |= {node: own[node] for node in mine if node in own}
    # The same in every bit
    assert joined == links
    for frame in range(1, total + 1):
        ours, theirs = pieces[frame], whole.get(frame, [])
        assert [face.node for face in ours] == [face.node for face in theirs]
        assert [face.is_guess for face in ours] == [face.is_guess for face in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.values, other.values, equal_nan=True)
    everything = [(step, row) for step in found for row in range(len(found[step]))]
    assert join_tracks(nodes, joined) == join_tracks(everything, links)


def test_a_segment_without_its_margin_fails_the_test_before(monkeypatch):
    monkeypatch.setattr(f"{__name__}.margin_steps", lambda smooth: 0)
    with pytest.raises(AssertionError):
        list(map(test_segments_of_a_video_give_the_boxes_and_tracks_of_the_whole, range(40)))


def tracks_of(found):
    nodes = [(step, row) for step in found for row in range(len(found[step]))]
    return join_tracks(nodes, link(found))


def test_two_faces_side_by_side_keep_their_tracks():
    found = {s: detections((10 + 3 * s, 10, 40), (200 - 3 * s, 12, 40)) for s in range(20)}
    assert set(tracks_of(found).values()) == {1, 2}
    assert all(track == row + 1 for (_, row), track in tracks_of(found).items())


@pytest.mark.parametrize("missed", range(MOST_MISSED + 2))
def test_a_face_that_is_missed_longer_begins_a_new_track(missed):
    box = detections((10, 10, 40))
    gone = {2 + k: detections() for k in range(missed)}
    found = {0: box, 1: box, **gone, 2 + missed: box, 3 + missed: box}
    assert len(set(tracks_of(found).values())) == (1 if missed <= MOST_MISSED else 2)
    # In between it has boxes, which are to be confirmed
    faces = place_faces(found, link(found), 0, every=4, total=4 * (4 + missed))
    frames = range(1, 4 * (4 + missed) + 1)
    seen = {1 + 4 * step for step in found if len(found[step])}
    near = {frame for first in (0, 2 + missed) for frame in range(1 + 4 * first, 6 + 4 * first)}
    sure = seen | near | (set(range(6, 1 + 4 * 2)) if missed == 0 else set())
    guessed = {frame for frame in frames if any(face.is_guess for face in faces.get(frame, []))}
    assert guessed.isdisjoint(sure)
    if missed <= MOST_MISSED:
        assert sorted(faces) == list(frames)
        assert guessed == set(frames) - sure
    else:
        assert faces.get(1 + 4 * 3) is None


def test_boxes_between_detections_lie_on_a_line_and_the_last_one_is_held_as_a_guess():
    found = {s: detections((10 * s, 5, 40)) for s in range(4)}
    faces = place_faces(found, link(found), 2, every=5, total=18)
    assert sorted(faces) == list(range(1, 19))
    xs = [faces[frame][0].values[0] for frame in range(1, 19)]
    # Uniform motion stays as it is: where a track begins or ends the mean has both sides or none.
    assert xs == pytest.approx([2.0 * k for k in range(16)] + [30.0, 30.0])
    assert [faces[frame][0].is_guess for frame in range(1, 19)] == [False] * 16 + [True] * 2


def test_a_guess_stays_where_a_detection_confirms_it_and_each_confirms_one():
    here, there = detections((10, 10, 40))[0], detections((90, 10, 40))[0]
    guess, other = Face((3, 0), here, True), Face((5, 0), here + 1, True)
    sure = Face((4, 1), there, False)
    assert confirm([guess, sure], detections()) == [sure]
    (kept, same) = confirm([guess, sure, other], detections((12, 10, 40), (91, 10, 40)))
    assert same is sure
    assert (kept.node, kept.is_guess, kept.values[0]) == ((3, 0), False, 12)
    assert confirm([Face((0, 0), there, True), sure], detections((91, 10, 40))) == [sure]


def test_smoothing_is_the_mean_over_the_same_face_around_it():
    rng = np.random.default_rng(0)
    found = {s: detections((50 + rng.normal(0, 3), 20, 40), (150, 20, 40)) for s in range(9)}
    smoothed = smooth_boxes(found, link(found), 2)
    xs = np.array([found[s][0, 0] for s in range(9)])
    for step in range(9):
        reach = min(2, step, 8 - step)
        assert smoothed[step, 0][0] == pytest.approx(xs[step - reach : step + reach + 1].mean())
        assert smoothed[step, 0][4] == found[step][0, 4]


def test_a_damaged_link_ends_a_track_and_nothing_else():
    nodes = [(0, 0), (1, 0), (2, 0), (2, 1)]
    links = {(0, 0): (1, 0), (1, 0): (2, 7), (2, 0): (1, 0), (2, 1): (2, 0)}
    assert join_tracks(nodes, links) == {(0, 0): 1, (1, 0): 1, (2, 0): 2, (2, 1): 3}
