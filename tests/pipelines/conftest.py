"""A bank of texts, and a cache of prompts of its own."""

from __future__ import annotations

import pytest

from tests.helpers.texts import make_text_bank


@pytest.fixture(scope="package")
def texts(tmp_path_factory):
    """``bank/`` and ``labels/`` of frames that are vectors of prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAFFECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_text_bank(tmp_path_factory.mktemp("texts"))
