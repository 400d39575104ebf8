"""Large packages, imported sooner."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Generator


@contextlib.contextmanager
def quick_imports() -> Generator[None]:
    """Import without Python's search for garbage, and keep it from what was imported.

    Torch, and more so its compiler, are hundreds of thousands of objects, none of which is garbage:
    looking for it takes a sixth of the import, and then as long again now and then. It is for
    commands and workers, not for a user's own process, whose garbage would be kept too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # At exit triton reports what it takes for lost, and prints pages about it.
        atexit.register(gc.unfreeze)
