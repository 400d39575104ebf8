"""The bank of texts, and heads that were trained on it."""

import pytest

import raffect
from tests.helpers.texts import text_bank, write_class_captions
from tests.helpers.zeroshot_heads import PROJECTION, SETS, UNSEEN, config_of, zeroshot_of

texts = pytest.fixture(scope="package")(text_bank)


@pytest.fixture(scope="package")
def captions(texts, tmp_path_factory):
    """Vectors as of a teacher, for projections."""
    file = tmp_path_factory.mktemp("captions") / "captions.parquet"
    return write_class_captions(texts, file, image_sha256="")


@pytest.fixture(scope="package")
def own_captions(texts, tmp_path_factory):
    """Texts by the weights of the bank."""
    return write_class_captions(texts, tmp_path_factory.mktemp("own") / "captions.parquet")


@pytest.fixture(scope="package")
def projection(texts, captions, tmp_path_factory):
    """Two seeds of a projection."""
    out = tmp_path_factory.mktemp("runs") / "projection"
    raffect.train(config_of(texts, captions, out, PROJECTION, num_seeds=2))
    return out


@pytest.fixture(scope="package")
def left_out(texts, captions, tmp_path_factory):
    """A projection without each of three classes."""
    out = tmp_path_factory.mktemp("runs") / "left-out"
    return raffect.train(config_of(texts, captions, out, PROJECTION, leave_out=UNSEEN))


@pytest.fixture(scope="package")
def judged(texts, projection, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "judged"
    return raffect.zeroshot(zeroshot_of(texts, out, projection, prompts=SETS))
