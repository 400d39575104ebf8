"""Vectors of others: an array and its frames become a bank, and come out as they went in."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.import_npy import import_npy
from raffect.cli import main
from raffect.config import BankImportConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.errors import RaffectError


def write(folder, count=300, dtype=np.float32, seed=0):
    """An array in any order of frames, and their names."""
    rng = np.random.default_rng(seed)
    order, x = rng.permutation(count), rng.normal(size=(count, 5)).astype(dtype)
    video, frame = [f"v{k // 50}" for k in order], (order % 50 + 1).astype(np.int32)
    np.save(folder / "x.npy", x)
    pq.write_table(pa.table({"video": video, "frame": frame}), folder / "keys.parquet")
    return dict(zip(zip(video, frame.tolist(), strict=True), x, strict=True))


def importing(folder, **more):
    files = {"npy": folder / "x.npy", "keys": folder / "keys.parquet", "bank": folder / "bank"}
    return BankImportConfig(**files | {"name": "teacher"} | more)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_come_out_as_they_went_in_whatever_their_order(tmp_path, dtype):
    truth = write(tmp_path, dtype=dtype)
    report = import_npy(importing(tmp_path))
    assert (report.written, report.kept, report.dim) == (300, 0, 5)
    keys = {"video": [video for video, _ in truth], "frame": [frame for _, frame in truth]}
    labels = pa.table(keys | {"split": ["train"] * 300, "expression": [0] * 300})
    found = read_features(Bank(tmp_path / "bank"), labels, EXPR, "train")
    for x, video, frame in zip(found.x, found.video, found.frame, strict=True):
        assert (x == truth[found.videos[video], frame].astype(np.float16)).all()

    # Again: all is there, and other vectors are counted
    assert import_npy(importing(tmp_path)).kept == 300
    write(tmp_path, seed=1)
    again = import_npy(importing(tmp_path))
    assert (again.kept, again.differing) == (300, 300)
    assert "300 of them with other vectors" in "\n".join(again.lines())


def test_what_was_exported_can_be_imported(tmp_path):
    write(tmp_path)
    import_npy(importing(tmp_path))
    out = tmp_path / "out"
    assert main(["bank", "export", "--bank", str(tmp_path / "bank"), "--out", str(out)]) == 0
    files = {"npy": out / "features.npy", "keys": out / "keys.parquet"}
    import_npy(importing(tmp_path, bank=tmp_path / "second", **files))
    assert Bank(tmp_path / "second").digest() == Bank(tmp_path / "bank").digest()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"x": np.zeros((3, 5))}, "has 3 rows and"),
        ({"x": np.full((300, 5), np.nan)}, "row 0 is not finite, or above 65,504"),
        ({"x": np.full((300, 5), 7e4)}, "row 0 is not finite, or above 65,504"),
        ({"x": np.zeros((300, 5), int)}, "int64 of shape (300, 5), expected one array of floats"),
        (
            {"x": np.zeros(300)},
            "float64 of shape (300,), expected one array of floats of shape (N, D)",
        ),
        ({"x": np.array([{}])}, "not a readable array"),
        ({"frame": np.ones(300, int)}, "is listed twice; a bank holds each frame once"),
        ({"frame": np.zeros(300, int)}, "expected video and frame of each row"),
        ({"name": ""}, "or --npy, --keys and --name"),
    ],
)
def test_bad_input_is_one_line_and_no_bank(tmp_path, capsys, change, line):
    write(tmp_path)
    if "x" in change:
        np.save(tmp_path / "x.npy", change["x"])
    if "frame" in change:
        keys = pq.read_table(tmp_path / "keys.parquet")
        keys = keys.set_column(1, "frame", pa.array(change["frame"]))
        pq.write_table(keys, tmp_path / "keys.parquet")
    files = {"npy": "x.npy", "keys": "keys.parquet", "bank": "bank"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    name = change.get("name", "teacher")
    assert main(["bank", "import", *words, *(["--name", name] if name else [])]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in error
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("content", [b"PK\x03\x04rubbish", b"", b"\x93NUMPY\x01\x00v\x00{'descr"])
def test_a_damaged_array_is_one_line_and_no_bank(tmp_path, content):
    write(tmp_path)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(RaffectError, match=r"--npy .*x.npy: not a readable array \("):
        import_npy(importing(tmp_path))
    assert not (tmp_path / "bank").exists()


def test_a_bank_takes_vectors_of_one_name_and_length_alone(tmp_path, capsys):
    write(tmp_path)
    import_npy(importing(tmp_path))
    files = ["--npy", "x.npy", "--keys", "keys.parquet", "--bank", "bank"]
    words = [str(tmp_path / word) if not word.startswith("--") else word for word in files]
    assert main(["bank", "import", *words, "--name", "other"]) == 2
    assert "model: teacher against other" in capsys.readouterr().err
