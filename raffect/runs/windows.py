"""Which windows heads of a recipe read, and whether there are such."""

from __future__ import annotations

from collections.abc import Iterable

from raffect.bank.features import FeatureIndex
from raffect.bank.windows import Window, WindowIndex
from raffect.errors import require
from raffect.recipe import HeadConfig


def window_of(head: HeadConfig) -> Window:
    """The shape of a sample of heads of a recipe."""
    return Window() if head.window == 1 else Window(head.window, head.stride)


def read_windows(heads: Iterable[HeadConfig]) -> bool:
    """Whether one of some heads reads more than single features."""
    return any(window_of(head).length > 1 for head in heads)


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
