"""Tracks: detections in each n-th frame become a box in every frame, and an identity.

Detections of neighbouring steps are linked where their boxes overlap. Whether two are linked
depends on the detections from the one to the other and on nothing else; a smoothed box on those a
few steps away. So a segment of a video, with a few steps more on both sides, gives each of its
frames the very box that the whole video would give, and identities follow afterwards from all links
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FIELDS = ("x", "y", "w", "h", "score", "left_x", "left_y", "right_x", "right_y")
"""Columns of detections: box, score, and centres of the eye on the picture's left and on its right,
NaN where the detector gives none; all in pixels."""
_SCORE = FIELDS.index("score")
MOST_MISSED = 2
"""Steps in a row in which a detector may miss a face without ending its track."""
_LEAST_OVERLAP = 0.3
"""Intersection over union from which two boxes may be of one face."""

Found = Mapping[int, np.ndarray]
"""Step -> detections, float64 (faces, `FIELDS`). Step s is frame 1 + s * every."""
Node = tuple[int, int]
"""A detection: its step, and its row among those of the step."""
Links = Mapping[Node, Node]
"""A detection -> the next one of the same face."""


def margin_steps(smooth: int) -> int:
    """Steps before and after a segment on which its boxes depend."""
    return MOST_MISSED + 1 + smooth


@dataclass(frozen=True)
class Face:
    """A face in a frame.

    Attributes:
        node: The last detection of the face, in this frame or before it; else its first one.
        values: `FIELDS`, smoothed and between two detections interpolated.
        is_guess: Whether a step on one side lacks it, so that it may not be there.
    """

    node: Node
    values: np.ndarray
    is_guess: bool


def link(found: Found) -> dict[Node, Node]:
    """Link the detections of the same face: neighbouring steps first, then over missed ones.

    Two detections are linked if each is the one that overlaps the other most, among those that
    nothing nearer in time is linked to.
    """
    forward: dict[Node, Node] = {}
    backward: set[Node] = set()
    for gap in range(1, MOST_MISSED + 2):
        for step in sorted(found):
            if step + gap not in found:
                continue
            ours = [i for i in range(len(found[step])) if (step, i) not in forward]
            theirs = [i for i in range(len(found[step + gap])) if (step + gap, i) not in backward]
            overlaps = overlap(found[step][ours], found[step + gap][theirs])
            for i, j in _mutual(overlaps):
                forward[step, ours[i]] = node = (step + gap, theirs[j])
                backward.add(node)
    return forward


def overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes.

    Args:
        some: Boxes as x, y, w, h in the first columns, shape (N, 4 or more).
        others: The same, shape (M, 4 or more).

    Returns:
        Shape (N, M).
    """
    a, b = some[:, None, :4], others[None, :, :4]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    both = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - common
    return common / np.maximum(both, 1e-9)


def _mutual(overlaps: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs that overlap each other most, and enough."""
    if not overlaps.size:
        return
    best = overlaps.argmax(1)
    for i, j in enumerate(best.tolist()):
        if overlaps[i, j] >= _LEAST_OVERLAP and overlaps[:, j].argmax() == i:
            yield i, j


def smooth_boxes(found: Found, links: Links, reach: int) -> dict[Node, np.ndarray]:
    """Each detection with the mean box of its face around it; scores stay as they are.

    Args:
        found: The detections.
        links: Of `link`.
        reach: Steps before and after; where the track is shorter on one side, it is on both.
    """
    back = {node: before for before, node in links.items()}
    smoothed = {}
    for step, rows in found.items():
        for i in range(len(rows)):
            node = (step, i)
            around = [node, *_walk(node, back, reach), *_walk(node, links, reach)]
            steps = [one[0] - step for one in around]
            near = min(-min(steps), max(steps))
            values = np.stack(
                [found[one[0]][one[1]] for one in around if abs(one[0] - step) <= near]
            )
            smoothed[node] = values.mean(0)
            smoothed[node][_SCORE] = rows[i][_SCORE]
    return smoothed


def _walk(node: Node, links: Links, reach: int) -> Iterator[Node]:
    """Detections that follow along links, at most ``reach`` steps away."""
    start = node[0]
    while (node := links.get(node, (0, -1)))[1] >= 0 and abs(node[0] - start) <= reach:
        yield node


def place_faces(
    found: Found, links: Links, reach: int, every: int, total: int
) -> dict[int, list[Face]]:
    """The faces of each frame, from detections in each n-th one.

    Boxes between detections of neighbouring steps are interpolated. Where a step was missed they
    are too, and before the first and after the last detection of a track they are held up to the
    next step; these are guesses, for a detector to confirm.

    Args:
        found: The detections.
        links: Of `link`.
        reach: Of `smooth_boxes`.
        every: Frames from one step to the next.
        total: Frames of the whole video.
    """
    smoothed, begun = smooth_boxes(found, links, reach), set(links.values())
    frames: dict[int, list[Face]] = {}

    def add(span: range, face: Face) -> None:
        for frame in span:
            frames.setdefault(frame, []).append(face)

    for node, values in sorted(smoothed.items(), key=lambda pair: pair[0]):
        start = 1 + node[0] * every
        add(range(start, start + 1), Face(node, values, False))
        if node not in begun:
            add(range(max(1, start - every + 1), start), Face(node, values, True))
        following = links.get(node)
        if following is None:
            add(range(start + 1, min(total + 1, start + every)), Face(node, values, True))
            continue
        stop = 1 + following[0] * every
        for frame in range(start + 1, stop):
            share = (frame - start) / (stop - start)
            between = (1 - share) * values + share * smoothed[following]
            add(range(frame, frame + 1), Face(node, between, following[0] > node[0] + 1))
    for faces in frames.values():
        faces.sort(key=lambda face: face.node)
    return frames


def confirm(faces: list[Face], rows: np.ndarray) -> list[Face]:
    """The faces of a frame without guesses: a detection that overlaps one takes its place.

    Args:
        faces: Of `place_faces`.
        rows: What a detector finds in this very frame. What overlaps a face that is no guess, or
            has confirmed another guess, confirms none.
    """
    sure = [face for face in faces if not face.is_guess]
    free = list(range(len(rows)))
    if sure and free:
        known = overlap(rows, np.stack([face.values for face in sure])).max(1)
        free = [row for row in free if known[row] < _LEAST_OVERLAP]
    for face in faces:
        if face.is_guess and free:
            overlaps = overlap(rows[free], face.values[None])[:, 0]
            if overlaps.max() >= _LEAST_OVERLAP:
                sure.append(Face(face.node, rows[free.pop(int(overlaps.argmax()))], False))
    return sorted(sure, key=lambda face: face.node)


def join_tracks(nodes: list[Node], links: Links) -> dict[Node, int]:
    """Track of each detection, numbered from 1 in the order of their first detections.

    Args:
        nodes: Every detection of a video.
        links: Every link of it; one to a detection that is not there, or that another one leads to
            already, counts as the end of its track.
    """
    known, taken = set(nodes), set()
    starts: dict[Node, Node] = {}
    for node in sorted(known):
        following = links.get(node)
        if following in known and following not in taken and following > node:
            taken.add(following)
            starts[following] = starts.get(node, node)
    first: dict[Node, int] = {}
    for node in sorted(known):
        first.setdefault(starts.get(node, node), len(first) + 1)
    return {node: first[starts.get(node, node)] for node in known}
