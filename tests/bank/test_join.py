"""Joined banks: rows against dictionaries of vectors, and every promise of a bank."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from raffect.bank.format import Bank
from raffect.bank.import_npy import import_npy
from raffect.bank.inspect import describe_bank
from raffect.bank.join import join_banks
from raffect.bank.joined import join_identities, text_space
from raffect.bank.records import BankFile, Identity
from raffect.bank.rejects import list_rejects
from raffect.bank.verify import verify, withdraw
from raffect.cli import main
from raffect.config import BankImportConfig
from raffect.errors import RaffectError
from tests.helpers.banks import IDENTITY, draw_bank, fill_bank, make_manifest
from tests.helpers.commands import error_line

MANIFEST = make_manifest({"a": 64, "b": 33})
OTHER = replace(IDENTITY, model="n", weights_sha256="b" * 64, dim=4, caveat="drawn; of a test")
FLIP = replace(IDENTITY, preprocess={"size": 4, "view": "flip"})


def rows_of(bank):
    """(video, frame) -> vector, by pyarrow alone."""
    table = ds.dataset(bank / "shards", format="parquet").to_table()
    raw = b"".join(table["feature"].to_pylist())
    x = np.frombuffer(raw, "<f2").reshape(len(table), -1)
    keys = zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True)
    return dict(zip(keys, x, strict=True))


def planned_of(bank):
    return {(row["video"], row["frame"]) for row in Bank(bank).plan.table.to_pylist()}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def two_banks(folder, **more):
    """Parts of the same frames, in shards of 16 and 11 rows."""
    first = fill_bank(folder / "A", MANIFEST, 16)
    second = fill_bank(folder / "B", MANIFEST, 11, identity=OTHER, **more)
    return first.path, second.path


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("how", ["concatenate", "average"])
def test_rows_are_those_of_the_parts_by_key_whatever_their_plans(tmp_path, how, seed):
    dims = (6, 4, 9) if how == "concatenate" else (6, 6, 6)
    parts, vectors = [], []
    for k, (dim, rows) in enumerate(zip(dims, (8, 11, 5), strict=True)):
        identity = replace(IDENTITY, model=f"m{k}", dim=dim)
        bank, features = draw_bank(tmp_path / f"b{k}", 10 * seed + k, identity, rows)
        parts.append(bank.path)
        vectors.append(features)
    report = join_banks(parts, tmp_path / "joined", how)

    # Vectors
    common = set(vectors[0]) & set(vectors[1]) & set(vectors[2])
    found = rows_of(tmp_path / "joined")
    assert found.keys() == common
    assert len(common) > 5
    for key, x in found.items():
        own = [features[key] for features in vectors]
        if how == "concatenate":
            assert x.tobytes() == b"".join(vector.tobytes() for vector in own)
        else:
            total = own[0].astype(np.float32) + own[1].astype(np.float32)
            mean = (total + own[2].astype(np.float32)) / np.float32(3)
            assert np.array_equal(x, mean.astype(np.float16))

    # Rejects: all other frames of the first part, each with the parts that have no vector of it
    rejects = list_rejects(Bank(tmp_path / "joined")).rejects
    assert {(one.video, one.frame) for one in rejects} == planned_of(parts[0]) - common
    for one in rejects:
        for k in range(3):
            key = (one.video, one.frame)
            assert (f"part {k + 1} (m{k})" in one.reason) == (key not in vectors[k])
            if key not in planned_of(parts[k]):
                assert f"part {k + 1} (m{k}) lacks the frame" in one.reason
            elif key not in vectors[k]:
                assert f"part {k + 1} (m{k}) could not read it: damaged" in one.reason

    # Counts, and the proof of a bank
    assert verify(Bank(tmp_path / "joined")).complete
    planned = planned_of(parts[0])
    assert (report.rows, report.planned, report.waiting) == (len(common), len(planned), 0)
    for k, part in enumerate(report.parts):
        theirs = planned_of(parts[k])
        assert part.lacking == len(planned - theirs)
        assert part.rejected == len((planned & theirs) - set(vectors[k]))
        assert part.others == len(theirs - planned)


def test_parts_in_other_shards_make_the_same_bank(tmp_path):
    first, second = two_banks(tmp_path)
    halves = MANIFEST.slice(40, 30), MANIFEST
    other = Bank(tmp_path / "C" / "B")
    vectors = rows_of(second)
    for manifest in halves:  # two generations, so that the order is another
        plan = other.extend_plan(manifest, 7)
        other.claim(OTHER)
        for shard in set(range(plan.num_shards)) - set(other.committed()):
            keys = plan.rows(shard)
            x = np.stack([vectors[row["video"], row["frame"]] for row in keys.to_pylist()])
            other.commit(shard, keys, x, {}, OTHER)
    join_banks([first, second], tmp_path / "one")
    join_banks([first, other.path], tmp_path / "two")
    assert Bank(tmp_path / "one").digest() == Bank(tmp_path / "two").digest()

    # Joined again of the other one, the shards are replaced by equal ones
    report = join_banks([first, other.path], tmp_path / "one")
    assert report.replaced == report.planned == 97
    assert Bank(tmp_path / "one").digest() == Bank(tmp_path / "two").digest()
    assert verify(Bank(tmp_path / "one")).complete


def test_a_join_of_what_is_up_to_date_writes_nothing(tmp_path):
    parts = two_banks(tmp_path)
    first = join_banks(parts, tmp_path / "joined")
    before = times(tmp_path)
    again = join_banks(parts, tmp_path / "joined")
    assert times(tmp_path) == before
    assert (first.written, again.written, again.rows) == (97, 0, 97)
    assert "up to date" in again.short_line()


def test_a_killed_join_goes_on_and_ends_as_an_undisturbed_one(tmp_path):
    manifest = make_manifest({"a": 200})
    parts = [
        fill_bank(tmp_path / "A", manifest, 2).path,
        fill_bank(tmp_path / "B", manifest, 9, identity=OTHER).path,
    ]
    path = tmp_path / "joined"
    code = "import sys; from pathlib import Path; from raffect.bank.join import join_banks; "
    code += "join_banks([Path(part) for part in sys.argv[2:]], Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, *map(str, (path, *parts))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while len(Bank(path).committed()) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = Bank(path).committed()
    assert len(done) < 100
    kept = {Bank(path).shard_path(k): Bank(path).shard_path(k).stat().st_mtime_ns for k in done}

    report = join_banks(parts, path)
    assert report.written == 200 - 2 * len(done)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert verify(Bank(path), manifest).complete
    join_banks(parts, tmp_path / "undisturbed")
    assert Bank(path).digest() == Bank(tmp_path / "undisturbed").digest()


def test_frames_that_a_part_has_not_extracted_leave_their_shards_open_until_it_has(tmp_path):
    parts = two_banks(tmp_path)
    whole = join_banks(parts, tmp_path / "whole")
    withdraw(Bank(parts[1]), [2])  # frames 23 to 33, of shards 1 and 2 of the first part
    report = join_banks(parts, tmp_path / "joined")
    assert (report.waiting, report.rows) == (32, 65)
    assert report.parts[1].waiting == 11
    found = verify(Bank(tmp_path / "joined"))
    assert found.sound
    assert not found.complete
    assert "waiting: 32 frames" in "\n".join(report.lines())

    # A joined bank of which a part lost frames is open as well, and closed when they are back
    report = join_banks(parts, tmp_path / "whole")
    assert (report.waiting, report.rows) == (32, 65)
    fill_bank(parts[1], MANIFEST, 11, identity=OTHER)
    for path in (tmp_path / "joined", tmp_path / "whole"):
        assert join_banks(parts, path).rows == whole.rows == 97
    assert Bank(tmp_path / "joined").digest() == Bank(tmp_path / "whole").digest()


def test_a_joined_bank_grows_with_its_parts(tmp_path):
    few = make_manifest({"a": 40})
    first, second = fill_bank(tmp_path / "A", few, 16), Bank(tmp_path / "B")
    fill_bank(second.path, few.slice(0, 30), 11, identity=OTHER)
    report = join_banks([first.path, second.path], tmp_path / "joined")
    assert (report.rows, report.rejects, report.parts[1].lacking) == (30, 10, 10)

    # The second part grows: rejects become rows, and shards that had none stay
    kept = Bank(tmp_path / "joined").shard_path(0).stat().st_mtime_ns
    fill_bank(second.path, MANIFEST, 11, identity=OTHER)
    report = join_banks([first.path, second.path], tmp_path / "joined")
    assert (report.rows, report.rejects, report.replaced) == (40, 0, 24)
    assert Bank(tmp_path / "joined").shard_path(0).stat().st_mtime_ns == kept
    join_banks([first.path, second.path], tmp_path / "at once")
    assert Bank(tmp_path / "joined").digest() == Bank(tmp_path / "at once").digest()

    # The first part grows: new shards, and none is replaced
    fill_bank(first.path, MANIFEST, 16)
    report = join_banks([first.path, second.path], tmp_path / "joined")
    assert (report.rows, report.written, report.replaced) == (97, 57, 0)
    assert verify(Bank(tmp_path / "joined"), MANIFEST).complete


def test_a_damaged_part_stops_the_join_and_a_repaired_one_goes_on(tmp_path):
    parts = two_banks(tmp_path)
    file = Bank(parts[1]).shard_path(3)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RaffectError, match=f"{file.name}: not the file that was committed"):
        join_banks(parts, tmp_path / "joined")
    assert not verify(Bank(tmp_path / "joined")).damaged
    withdraw(Bank(parts[1]), [3])
    fill_bank(parts[1], MANIFEST, 11, identity=OTHER)
    assert join_banks(parts, tmp_path / "joined").rows == 97
    assert verify(Bank(tmp_path / "joined")).complete


def test_a_damaged_joined_bank_is_repaired_by_the_next_join(tmp_path, capsys):
    parts = two_banks(tmp_path)
    path = tmp_path / "joined"
    join_banks(parts, path)
    digest = Bank(path).digest()
    file = Bank(path).shard_path(1)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RaffectError, match="then `raffect bank join` again"):
        join_banks([path, fill_bank(tmp_path / "C", MANIFEST, identity=FLIP).path], tmp_path / "D")
    assert main(["bank", "verify", "--bank", str(path)]) == 1
    assert "`raffect bank verify --repair`, then `raffect bank join`" in capsys.readouterr().out
    assert main(["bank", "verify", "--bank", str(path), "--repair"]) == 1
    out = capsys.readouterr().out
    assert "1 shard(s) withdrawn; run `raffect bank join` to make them again" in out
    assert join_banks(parts, path).written == 16
    assert Bank(path).digest() == digest

    # A bank.json or plan that --repair withdrew is made again
    (path / "bank.json").write_bytes(b"{")
    (path / "plan" / "0000.parquet").write_bytes(b"PAR1")
    assert main(["bank", "verify", "--bank", str(path), "--repair"]) == 1
    assert join_banks(parts, path).rows == 97
    assert Bank(path).digest() == digest


def test_vectors_of_sound_are_a_part_and_frames_without_sound_are_rejects(tmp_path):
    first = fill_bank(tmp_path / "faces", MANIFEST, 16).path
    rng = np.random.default_rng(0)
    heard = MANIFEST.filter(pa.array(MANIFEST["frame"].to_numpy() % 5 != 0))
    order = rng.permutation(len(heard))
    sound = rng.normal(size=(len(heard), 3)).astype(np.float32)[order]
    np.save(tmp_path / "x.npy", sound)
    pq.write_table(heard.take(order).select(["video", "frame"]), tmp_path / "keys.parquet")
    files = {"npy": tmp_path / "x.npy", "keys": tmp_path / "keys.parquet"}
    import_npy(BankImportConfig(**files, name="audio", bank=tmp_path / "sound"))
    report = join_banks([first, tmp_path / "sound"], tmp_path / "joined")
    found, faces = rows_of(tmp_path / "joined"), rows_of(first)
    keys = [(row["video"], row["frame"]) for row in heard.take(order).to_pylist()]
    assert found.keys() == set(keys)
    for key, x in zip(keys, sound.astype(np.float16), strict=True):
        assert np.array_equal(found[key], np.concatenate([faces[key], x]))
    assert (report.parts[1].lacking, report.rejects) == (18, 18)
    assert report.identity.caveat == "imported features"
    reasons = list_rejects(Bank(tmp_path / "joined")).reasons
    assert reasons == {"part 2 (audio) lacks the frame": 18}


def test_a_mean_of_views_may_be_a_part_itself(tmp_path):
    plain = fill_bank(tmp_path / "plain", MANIFEST).path
    flip = fill_bank(tmp_path / "flip", MANIFEST, identity=FLIP).path
    other = fill_bank(tmp_path / "other", MANIFEST, identity=OTHER).path
    join_banks([plain, flip], tmp_path / "mean", "average")
    report = join_banks([tmp_path / "mean", other], tmp_path / "both")
    assert report.identity.model == "mean(m, m flip) + n"
    assert [one.model for one in report.identity.encoders] == ["m", "m", "n"]
    assert Bank(tmp_path / "both").read_identity() == report.identity
    text = "\n".join(describe_bank(Bank(tmp_path / "both")).lines())
    assert "joined: mean(m, m flip) + n, concatenated, 10-d, raw" in text
    assert "view flip" in text
    assert report.identity.caveat == "drawn; of a test"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"parts": "A"}, "expected two banks or more"),
        ({"parts": "ABA"}, "banks 1 and 3 are both of m, with the same weights"),
        ({"parts": "AX"}, "X: no bank there"),
        ({"parts": "AD"}, "no frame (video and number) is in all of them"),
        ({"how": "average"}, "m has 6, n has 4 numbers; concatenate them"),
        ({"parts": ("A", "of A and E")}, "bank 2 has m in it, which is also named by itself"),
        ({"bank": "A"}, "is in "),
        ({"bank": "A/B"}, "which is joined; name a folder outside all --banks"),
        ({"bank": "C"}, "C was made by another encoder"),
        ({"bank": "mean"}, "was made by another encoder; bank against this run: model: mean"),
        ({"bank": "of A and E"}, "part 2 model: e against n; part 2 weights_sha256: eeee"),
        ({"bank": "of C and B"}, "holds 3 frames that"),
    ],
)
def test_a_join_that_means_nothing_is_refused_in_one_line(tmp_path, capsys, change, expected):
    two_banks(tmp_path)
    large = make_manifest({"a": 64, "b": 36})
    fill_bank(tmp_path / "C", large, 16)
    fill_bank(tmp_path / "D", make_manifest({"z": 9}), identity=replace(OTHER, model="d"))
    strange = replace(OTHER, model="e", weights_sha256="e" * 64)
    fill_bank(tmp_path / "E", MANIFEST, identity=strange)
    fill_bank(tmp_path / "F", MANIFEST, identity=FLIP)
    join_banks([tmp_path / "A", tmp_path / "F"], tmp_path / "mean", "average")
    join_banks([tmp_path / "A", tmp_path / "E"], tmp_path / "of A and E")
    join_banks([tmp_path / "C", tmp_path / "B"], tmp_path / "of C and B")
    before = times(tmp_path)
    parts = [str(tmp_path / name) for name in change.get("parts", "AB")]
    words = ["--banks", *parts, "--bank", str(tmp_path / change.get("bank", "joined"))]
    assert main(["bank", "join", *words, "--how", change.get("how", "concatenate")]) == 2
    assert expected in error_line(capsys.readouterr().err)
    assert times(tmp_path) == before


def test_the_command_prints_what_each_part_gave_and_where_it_lies(tmp_path, capsys):
    first, second = two_banks(tmp_path, rejects={1: {2: "torn", 5: "torn"}})
    words = ["--banks", str(first), str(second), "--bank", str(tmp_path / "A+B")]
    assert main(["bank", "join", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = sum(file.stat().st_size for file in (tmp_path / "A+B").glob("[sr]*s/*.parquet"))
    where = f"joined bank {tmp_path / 'A+B'}: 95 of 97 frames have all parts, 10 numbers"
    assert lines[0] == f"{where}, {size / 1000:.1f} kB, 97 frames written"
    assert lines[1:] == [
        "parts: 2 banks concatenated, of 6 + 4 numbers a frame",
        f"part 1: {first} (m), 97 of 97 frames",
        f"part 2: {second} (n), 95 of 97 frames, 2 unreadable",
        "rows: 95 vectors + 2 rejects, which a part lacks or could not read, of 97 planned frames",
        "caveat: drawn; of a test",
    ]


def test_identities_of_single_encoders_are_stored_as_before():
    assert "joined" not in IDENTITY.to_json()
    assert "joined" not in BankFile(identity=IDENTITY).to_json()["identity"]
    joined = join_identities([IDENTITY, OTHER], "concatenate")
    assert Identity.from_json(joined.to_bytes(), "x", "y") == joined
    one, two = (join_identities(pair, "concatenate") for pair in [(IDENTITY, OTHER), (OTHER, FLIP)])
    assert one.weights_sha256 != two.weights_sha256
    turned = join_identities([OTHER, IDENTITY], "concatenate")
    assert "part 1 model: m against n" in one.differences(turned)
    assert one.differences(OTHER)[0] == "model: m + n against n"


def test_texts_go_with_a_mean_of_views_of_one_encoder_alone():
    mean = join_identities([IDENTITY, FLIP], "average")
    assert text_space(mean) == IDENTITY
    assert text_space(join_identities([IDENTITY, FLIP], "concatenate")) is None
    other = replace(IDENTITY, weights_sha256="b" * 64)
    assert text_space(join_identities([IDENTITY, other], "average")) is None
    crop = replace(IDENTITY, preprocess={"size": 4, "view": "crop:0.8"})
    assert text_space(join_identities([mean, crop], "average")) == IDENTITY
