"""`raffect pack`: what a second run keeps, and what it packs again."""

import os
import re
import shutil

import pyarrow as pa
import pytest

from raffect.config import PackConfig
from raffect.datasets.frames import BadFrame, read_frames
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.extraction.pack import pack
from tests.helpers.banks import make_manifest


@pytest.fixture(params=[b"", b"\xff\xd8\xff\xe0 cut short"], ids=["empty", "cut"])
def config(tree, tmp_path, request):
    """Six pictures, of which one is empty, or cut short so that only decoding it fails."""
    pictures = sorted((tree / "cropped_aligned").rglob("*.jpg"))[:6]
    (tmp_path / "images" / "v").mkdir(parents=True)
    for k, path in enumerate(pictures, start=1):
        shutil.copy(path, tmp_path / "images" / "v" / f"{k:05d}.jpg")
    (tmp_path / "images" / "v" / "00003.jpg").write_bytes(request.param)
    manifest = make_manifest({"v": 6}, str(tmp_path / "images"))
    write_manifest(manifest, tmp_path / "m.parquet", synthetic=True)
    return PackConfig(manifest=tmp_path / "m.parquet", out=tmp_path / "packed", shard_rows=4)


def bad_frames(config) -> list[bool]:
    frames = read_frames(read_manifest(config.out / "manifest.parquet"))
    return [isinstance(frame, BadFrame) for frame in frames]


def content(config) -> bytes:
    return (config.out / "frames-00000.parquet").read_bytes()


def modified_ns(config) -> int:
    return (config.out / "frames-00000.parquet").stat().st_mtime_ns


def test_a_picture_that_was_fixed_is_packed_again(config, tmp_path):
    pack(config)
    assert bad_frames(config) == [False, False, True, False, False, False]
    before = content(config)
    pack(config)
    assert content(config) == before
    shutil.copy(tmp_path / "images" / "v" / "00002.jpg", tmp_path / "images" / "v" / "00003.jpg")
    pack(config)
    assert bad_frames(config) == [False] * 6


def test_pictures_that_are_gone_leave_their_copies(config, tmp_path):
    pack(config)
    before = content(config)
    os.rename(tmp_path / "images" / "v", tmp_path / "elsewhere")
    kept = re.compile("kept: the pictures of [56] packed frames are gone")
    assert any(kept.match(line) for line in pack(config).lines())
    assert content(config) == before


def test_other_frames_are_packed_again(config):
    pack(config)
    before = modified_ns(config)
    manifest = read_manifest(config.manifest).slice(0, 5).replace_schema_metadata(None)
    manifest = manifest.set_column(1, "frame", pa.array(range(1, 6), pa.int32()))
    write_manifest(manifest, config.manifest, synthetic=True)
    assert "packed 5 frames" in pack(config).lines()[0]
    assert modified_ns(config) != before
