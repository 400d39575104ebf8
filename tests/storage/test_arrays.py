"""Arrays in files of numpy: read as numpy does, and damage of any kind is one error."""

import io
import random

import numpy as np
import pytest

from raffect.storage.arrays import map_npy, read_npy
from raffect.storage.paths import Damaged


def npy(x, version=None):
    sink = io.BytesIO()
    np.lib.format.write_array(sink, x, version)
    return sink.getvalue()


ARRAYS = [
    np.array("3"),
    np.array(2.5),
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=">i2").reshape(3, 4)),
    np.zeros((0, 5), np.float32),
]


@pytest.mark.parametrize("x", ARRAYS)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_array_is_what_numpy_reads(x, version, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(x, version))
    truth = np.load(tmp_path / "x.npy")
    for found in (read_npy(npy(x, version)), map_npy(tmp_path / "x.npy")):
        assert found.dtype == truth.dtype
        assert np.array_equal(found, truth)


def damaged():
    whole = npy(np.array([1.5]))
    yield "a huge shape", whole.replace(b"(1,)", b"(9" + b"9" * 40 + b",)")
    yield "a shape that is no shape", whole.replace(b"(1,)", b"1   ")
    yield "a negative shape", whole.replace(b"(1,)", b"(-1,)")
    yield "a header that is cut", whole[:10] + whole[10:60]
    yield "an open bracket", whole.replace(b"(1,), }", b"(((((({")
    yield "no type", whole.replace(b"'<f8'", b"[1,2]")
    yield "a zip file", b"PK\x03\x04" + whole
    yield "numbers that are cut", whole[:-1]
    yield "nothing", b""
    yield "objects", npy_of_objects()
    yield "a version of the future", whole[:6] + b"\x09" + whole[7:]


def npy_of_objects():
    sink = io.BytesIO()
    np.save(sink, np.array([object], object), allow_pickle=True)
    return sink.getvalue()


@pytest.mark.parametrize(("what", "content"), list(damaged()))
def test_damage_of_any_kind_is_one_error(what, content, tmp_path):
    with pytest.raises(Damaged):
        read_npy(content)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(Damaged):
        map_npy(tmp_path / "x.npy")


def test_bytes_that_flip_and_ends_that_are_lost_never_raise_anything_else():
    rng, whole, refused = random.Random(0), npy(np.array(["3", "10"])), 0
    for _ in range(2000):
        content = bytearray(whole[: rng.randrange(len(whole) + 1)] if rng.random() < 0.3 else whole)
        for _ in range(rng.randint(0, 3)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            assert read_npy(bytes(content)).nbytes <= len(content)
        except Damaged as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < 2000


def test_more_cells_than_expected_are_refused():
    assert read_npy(npy(np.array(["3"])), most_cells=1).item() == "3"
    with pytest.raises(Damaged, match="2 cells, expected 1 at most"):
        read_npy(npy(np.array([1, 2])), most_cells=1)
