"""A bank knows the pictures that it was made from."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raffect.bank.format import Bank
from raffect.bank.pictures import check_pictures, require_same_pictures
from raffect.bank.running import Writer, note_of_run
from raffect.bank.verify import verify
from raffect.cli import main
from raffect.config import EncoderConfig, ExtractConfig
from raffect.datasets.manifest import write_manifest
from raffect.errors import RaffectError
from raffect.extraction.extract import _is_taken, extract
from raffect.extraction.steps import EncodeShard, Geometry, commit_shard, read_shard, to_item
from tests.helpers.banks import IDENTITY, fill_bank, make_manifest

FRAMES, SHARD_ROWS = 40, 8


class Mean:
    """A stand-in whose feature is a frame's mean."""

    identity, batch_size = IDENTITY, 4

    def encode(self, pictures):
        return np.array([[frame.mean()] * 6 for frame in pictures], np.float16).reshape(-1, 6)

    def probe(self):
        return 1.0


def draw(root: Path, seed: int) -> Path:
    """Forty pictures, the sixth of which is not one."""
    rng = np.random.default_rng(seed)
    (root / "v").mkdir(parents=True)
    for k in range(1, FRAMES + 1):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / "v" / f"{k:05d}.png")
    (root / "v" / "00006.png").write_bytes(b"no picture")
    return root


def list_pictures(root: Path) -> pa.Table:
    table = make_manifest({"v": FRAMES}, str(root))
    paths = [f"v/{k:05d}.png" for k in range(1, FRAMES + 1)]
    return table.set_column(2, "path", pa.array(paths))


def encode(bank: Bank, manifest: pa.Table, shards: range) -> None:
    """What `raffect extract` does, with its own functions, in one process."""
    plan = bank.extend_plan(manifest, SHARD_ROWS)
    for shard in shards:
        start, stop = plan.offsets[shard : shard + 2]
        item = to_item(shard, manifest.slice(start, stop - start))
        table = pa.table({name: [value] for name, value in item.items()})
        load = lambda config, device, threads: Mean()  # noqa: E731
        actor = EncodeShard(EncoderConfig(), str(bank.path), "cpu", 1, load)
        encoded = actor(read_shard(table, str(bank.path), Geometry(size=8)))
        assert commit_shard(encoded, str(bank.path))["failure"][0].as_py() is None


@pytest.fixture
def root(tmp_path):
    return draw(tmp_path / "images", 0)


@pytest.fixture
def manifest(root):
    return list_pictures(root)


@pytest.fixture
def bank(tmp_path, manifest):
    """Three shards of five."""
    bank = Bank(tmp_path / "bank")
    encode(bank, manifest, range(3))
    return bank


def test_a_record_has_the_digest_of_the_pictures_that_became_features(bank, root):
    digest = hashlib.sha256()
    for k in (1, 2, 3, 4, 5, 7, 8):
        content = (root / "v" / f"{k:05d}.png").read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    assert bank.read_commits()[0].pictures == digest.hexdigest()


def test_the_same_pictures_elsewhere_are_the_same_pictures(bank, root, tmp_path):
    moved = Path(shutil.move(root, tmp_path / "elsewhere"))
    found = check_pictures(bank, list_pictures(moved))
    assert (found.compared, found.known, found.unknown, found.changed) == (3, 3, 0, ())
    require_same_pictures(bank, list_pictures(moved))


def test_a_reject_that_was_mended_changes_nothing(bank, root, manifest):
    shutil.copy(root / "v" / "00007.png", root / "v" / "00006.png")
    assert check_pictures(bank, manifest).changed == ()


@pytest.mark.parametrize("how", ["replaced", "swapped", "a bit"])
def test_a_shard_of_other_pictures_is_named(bank, root, manifest, how):
    path = root / "v" / "00010.png"
    if how == "replaced":
        shutil.copy(root / "v" / "00001.png", path)
    elif how == "swapped":
        first, second = path.read_bytes(), (root / "v" / "00011.png").read_bytes()
        path.write_bytes(second)
        (root / "v" / "00011.png").write_bytes(first)
    else:
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    assert check_pictures(bank, manifest).changed == (1,)


@pytest.mark.parametrize("how", ["one is gone", "the mount point is empty"])
def test_pictures_that_are_gone_are_named_and_nothing_is_withdrawn(
    bank, root, manifest, tmp_path, capsys, how
):
    encode(bank, manifest, range(3, 5))
    commits = bank.read_commits()
    if how == "one is gone":
        (root / "v" / "00010.png").unlink()
    else:
        shutil.rmtree(root)
        root.mkdir()
    write_manifest(manifest, tmp_path / "m.parquet", synthetic=True)
    words = ["bank", "verify", "--bank", str(bank.path), "--manifest", str(tmp_path / "m.parquet")]
    assert main([*words, "--pictures", "--repair"]) == 1
    lost = 1 if how == "one is gone" else 5
    out = capsys.readouterr().out
    assert f"pictures: {5 - lost} of 5 shards with a digest compared, 0 were made from oth" in out
    assert f"not compared, since a picture cannot be read: {lost} (shard 00000" in out
    assert bank.read_commits() == commits
    assert verify(bank, manifest).complete
    assert len(require_same_pictures(bank, manifest).unreadable) == (how != "one is gone")


def test_a_bank_is_not_continued_with_other_pictures(bank, manifest, tmp_path):
    other = list_pictures(draw(tmp_path / "other", 1))
    write_manifest(other, tmp_path / "other.parquet", synthetic=True)
    config = ExtractConfig(manifest=tmp_path / "other.parquet", bank=bank.path)
    with pytest.raises(RaffectError, match="made from other pictures than the manifest lists now"):
        extract(config, load=never, geometry=Geometry(size=8))
    assert len(bank.read_commits()) == 3


def content_of(bank: Bank) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in bank.path.rglob("*") if file.is_file()}


def never(encoder, device, threads):
    raise AssertionError("loaded an encoder")


@pytest.mark.parametrize("why", ["other pictures", "another run", "a withdrawn plan"])
def test_an_extract_that_is_refused_changes_nothing(bank, manifest, tmp_path, why):
    # A manifest with more frames, which would be a generation of the plan
    root = draw(tmp_path / "other", 1) if why == "other pictures" else tmp_path / "images"
    larger = list_pictures(root)
    more = larger.slice(0, 8).set_column(0, "video", pa.array(["w"] * 8).dictionary_encode())
    larger = pa.concat_tables([larger, more]).unify_dictionaries()
    write_manifest(larger, tmp_path / "m.parquet", synthetic=True)
    what = "made from other pictures"
    if why != "other pictures":
        what = "another run writes into it"
        other = Writer(host="elsewhere", machine="other boot", pid=77, renewed=3)
        (bank.path / "running").mkdir()
        (bank.path / "running" / "elsewhere-77-abcdef.json").write_bytes(other.to_bytes())
    if why == "a withdrawn plan":  # and other frames in its shards, whose records would go
        (bank.path / "plan" / "0000.parquet").unlink()
        (bank.path / "plan" / "0000.withdrawn").touch()
    before = content_of(bank)
    config = ExtractConfig(manifest=tmp_path / "m.parquet", bank=bank.path)
    with pytest.raises(RaffectError, match=what):
        extract(config, load=never, geometry=Geometry(size=8))
    assert content_of(bank) == before


def test_other_pictures_are_refused_also_where_the_whole_plan_was_withdrawn(bank, tmp_path):
    (bank.path / "plan" / "0000.parquet").rename(bank.path / "plan" / "0000.withdrawn")
    other = list_pictures(draw(tmp_path / "other", 1))
    write_manifest(other, tmp_path / "m.parquet", synthetic=True)
    commits = bank.read_commits()
    config = ExtractConfig(manifest=tmp_path / "m.parquet", bank=bank.path)
    with pytest.raises(RaffectError, match="made from other pictures"):
        extract(config, load=never, geometry=Geometry(size=8))
    assert bank.read_commits() == commits


def test_a_run_that_was_killed_before_its_plan_is_followed_by_another(tmp_path):
    with note_of_run(tmp_path / "bank"):
        assert not Bank(tmp_path / "bank").exists
        assert not _is_taken(tmp_path / "bank")
    assert not _is_taken(tmp_path / "bank")
    (tmp_path / "bank" / "thesis.tex").touch()
    assert _is_taken(tmp_path / "bank")


def test_pictures_that_were_replaced_midway_are_found_and_encoded_again(
    bank, root, tmp_path, capsys
):
    shutil.rmtree(root)
    other = list_pictures(draw(root, 1))
    encode(bank, other, range(3, 5))
    write_manifest(other, tmp_path / "m.parquet", synthetic=True)
    words = ["bank", "verify", "--bank", str(bank.path), "--manifest", str(tmp_path / "m.parquet")]
    assert main(words) == 0
    assert main([*words, "--pictures"]) == 1
    out = capsys.readouterr().out
    assert "pictures: 5 of 5 shards with a digest compared, 3 were made from other pictures" in out
    for shard in range(3):
        assert f"damaged: shard {shard:06d} was made from other pictures" in out
    assert main([*words, "--pictures", "--repair"]) == 1
    assert sorted(bank.read_commits()) == [3, 4]
    encode(bank, other, range(3))
    assert main([*words, "--pictures"]) == 0


def test_a_sample_is_drawn_by_number_and_reads_no_more(bank, manifest):
    seen = []
    found = check_pictures(bank, manifest, 2, seen.append)
    assert (found.compared, found.known, len(seen)) == (2, 3, 2)
    assert check_pictures(bank, manifest, 99).compared == 3


def test_a_shard_that_is_not_planned_is_a_problem_and_no_traceback(bank, manifest):
    record = json.loads(bank.commit_path(0).read_text())
    ((name, facts),) = [(k, v) for k, v in record["files"].items() if k.startswith("shards")]
    other = name.replace("000000", "000099")
    shutil.copy(bank.path / name, bank.path / other)
    record |= {"shard": 99, "rows": 8, "rejects": 0, "files": {other: facts}}
    bank.commit_path(99).write_text(json.dumps(record))
    assert check_pictures(bank, manifest).known == 3
    assert "000099: committed but not planned" in verify(bank, manifest).problems


def test_records_without_a_digest_are_sound_and_called_so(tmp_path, capsys):
    listed = list_pictures(draw(tmp_path / "images", 0))
    bank = fill_bank(tmp_path / "imported", listed, SHARD_ROWS)
    assert "pictures" not in json.loads(bank.commit_path(0).read_text())
    require_same_pictures(bank, listed)
    write_manifest(listed, tmp_path / "m.parquet", synthetic=True)
    words = ["--bank", str(bank.path), "--manifest", str(tmp_path / "m.parquet"), "--pictures"]
    assert main(["bank", "verify", *words]) == 0
    out = capsys.readouterr().out
    assert "sound without one (format 1, or imported): 5" in out
    assert "sound and complete" in out


def test_pictures_need_a_manifest_and_a_root_that_is_there(bank, root, manifest, tmp_path, capsys):
    assert main(["bank", "verify", "--bank", str(bank.path), "--pictures"]) == 2
    assert "--manifest says where the pictures are" in capsys.readouterr().err
    root.rename(tmp_path / "unmounted")
    with pytest.raises(RaffectError, match="image root cannot be read"):
        check_pictures(bank, manifest)
    assert verify(bank, manifest).sound
