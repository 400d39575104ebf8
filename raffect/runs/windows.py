"""Which windows heads of a recipe read, and whether there are such."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raffect.bank.features import FeatureIndex
from raffect.bank.windows import Window, WindowIndex
from raffect.errors import require
from raffect.heads.checkpoint import HeadCard
from raffect.recipe import HeadConfig


def window_of(head: HeadConfig) -> Window:
    """The shape of a sample of heads of a recipe."""
    return Window() if head.window == 1 else Window(head.window, head.stride)


def read_windows(heads: Iterable[HeadConfig]) -> bool:
    """Whether one of some heads reads more than single features."""
    return any(window_of(head).length > 1 for head in heads)


def describe_other_samples(cards: Sequence[HeadCard], of_clips: bool) -> list[str]:
    """A caveat for heads that were trained on clips and are used on frames, or the other way.

    Args:
        cards: Of the heads. What a head that was imported was trained on is not known, and its
            own caveat says so.
        of_clips: Whether they are used on clips.
    """
    found = [
        f"trained on {describe_samples(card.recipe.head, card.data.of_clips)}, used here on "
        f"{describe_samples(card.recipe.head, of_clips)}"
        for card in cards
        if card.validation is not None and card.data.of_clips != of_clips
    ]
    return list(dict.fromkeys(found))


def describe_samples(head: HeadConfig, of_clips: bool) -> str:
    """What heads of a recipe read of clips, or of frames: ``means of clips``."""
    window = window_of(head)
    if window.length == 1:
        return "means of clips" if of_clips else "single frames"
    if of_clips:
        return f"{window.length} frames evenly spread over a clip"
    return f"windows of {window.length} neighbouring frames, stride {window.stride}"


def require_full_window(index: FeatureIndex, head: HeadConfig, of_clips: bool) -> None:
    """Refuse windows of which not one is full: longer than any clip, or than any video.

    Raises:
        RaffectError: Names the setting and the longest.
    """
    if not isinstance(index, WindowIndex):
        return
    most = f"{index.fullest} frames; expected at most {index.fullest}"
    what = (
        f"head.window {head.window}: the longest clip of the training split has {most}"
        if of_clips
        else f"head.window {head.window}, head.stride {head.stride}: the fullest window in any "
        f"video of the training split has {most}, or another head.stride"
    )
    require(index.fullest == head.window, what)
