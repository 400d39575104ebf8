"""`raffect extract` as a user runs it where something is wrong.

It runs on a full disk, twice at once, with an object store that is too small, and is killed.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.datasets.manifest import read_manifest
from tests.helpers.sample import sampled

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import kill_extract

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Path:
    """The bank that an undisturbed run makes."""
    bank = tmp_path_factory.mktemp("whole") / "bank"
    assert finish(start(prepared, bank))[0] == 0
    return bank


def start(prepared: Path, bank: Path, *more: str) -> subprocess.Popen:
    data = ["--manifest", str(prepared / "manifest.parquet"), "--bank", str(bank)]
    encoder = ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
    words = ["extract", *data, "--shard-rows", "32", *encoder, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "raffect.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def require_same(bank: Path, whole: Path, prepared: Path) -> None:
    assert verify(Bank(bank), read_manifest(prepared / "manifest.parquet")).complete
    assert Bank(bank).digest() == Bank(whole).digest()


def test_two_extracts_that_join_write_the_same_bank(prepared, whole, tmp_path):
    for process in [start(prepared, tmp_path / "bank", "--join") for _ in range(2)]:
        code, _, err = finish(process)
        assert code == 0, err
    require_same(tmp_path / "bank", whole, prepared)


@pytest.mark.release
def test_two_extracts_of_other_bytes_that_join_leave_one_sound_bank(prepared, tmp_path):
    bank = Bank(tmp_path / "bank")
    sizes = [("--join", "--encoder.batch-size", size) for size in ("3", "8")]
    for process in [start(prepared, bank.path, *size) for size in sizes]:
        code, _, err = finish(process)
        assert code == 0, err
    assert verify(bank, read_manifest(prepared / "manifest.parquet")).complete
    named = {name for record in bank.read_commits().values() for name in record.files}
    assert {f"shards/{path.name}" for path in (bank.path / "shards").iterdir()} == named


def test_of_two_extracts_at_once_one_refuses_in_one_line_that_names_the_other(
    prepared, whole, tmp_path
):
    processes = [start(prepared, tmp_path / "bank") for _ in range(2)]
    (code, _, err), (other_code, _, other_err) = (finish(process) for process in processes)
    assert sorted([code, other_code]) == [0, 2], err + other_err
    refused, winner = (err, processes[1]) if code else (other_err, processes[0])
    (line,) = [line for line in refused.splitlines() if "another run" in line]
    assert f"process {winner.pid} on " in line
    assert "--join" in line
    require_same(tmp_path / "bank", whole, prepared)


def test_after_a_kill_the_same_command_goes_on_at_once(prepared, whole, tmp_path):
    process = start(prepared, tmp_path / "bank")
    while not list(tmp_path.glob("bank/commits/*.json")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    finish(process)
    assert list((tmp_path / "bank" / "running").glob("*.json"))
    code, _, err = finish(start(prepared, tmp_path / "bank"))
    assert code == 0, err
    require_same(tmp_path / "bank", whole, prepared)


@pytest.mark.parametrize("victim", sampled(["driver", "worker"], ["worker"]))
def test_a_killed_driver_or_worker_loses_and_changes_nothing(victim, prepared, whole, tmp_path):
    """One kill; `scripts/kill_extract.py` does the full count."""
    kill = {
        "driver": lambda *args: kill_extract.kill_drivers(*args[:5], 14.0, *args[5:]),
        "worker": kill_extract.kill_workers,
    }[victim]
    manifest, tally = prepared / "manifest.parquet", kill_extract.Tally()
    same = kill_extract.stable_bytes(whole)
    kill(random.Random(1), manifest, tmp_path, same, 1, 32, tally)
    assert tally.kills == 1
    assert tally.banks >= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_line_and_with_room_the_same_command_goes_on(prepared, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "raffect-test", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted on this machine")
    try:
        code, out, err = finish(start(prepared, disk / "bank"))
        assert code == 2, out + err
        assert "cannot write (No space left on device); make room" in err
        assert "Traceback" not in err
        found = verify(Bank(disk / "bank"))
        assert found.sound
        assert 0 < found.rows < found.planned
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert finish(start(prepared, disk / "bank"))[0] == 0
        require_same(disk / "bank", whole, prepared)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


PRESSED = """
import sys, time
from pathlib import Path
import numpy as np, pyarrow as pa, ray
from PIL import Image
from raffect.config import EncoderConfig, ExtractConfig
from raffect.bank.format import Identity
from raffect.datasets.manifest import write_manifest
from raffect.extraction.extract import extract
from raffect.extraction.steps import Geometry

class Slow:
    identity = Identity(
        model="m",
        weights_sha256="a" * 64,
        weights="none",
        preprocess={},
        precision="float32",
        dim=2,
    )
    batch_size = 4
    def probe(self):
        return 1.0
    def encode(self, frames):
        time.sleep(0.5)
        return np.array([[frame.mean(), frame.shape[0]] for frame in frames], np.float16)

folder, shards, rows = Path(sys.argv[1]), 16, 128
(folder / "v").mkdir()
noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
Image.fromarray(noise).save(folder / "v" / "1.png")
count = shards * rows
manifest = pa.table({
    "video": pa.array(["v"] * count).dictionary_encode(),
    "frame": np.arange(1, count + 1, dtype=np.int32),
    "path": ["v/1.png"] * count,
    "root": pa.array([str(folder)] * count).dictionary_encode(),
})
file, bank = folder / "manifest.parquet", folder / "bank"
write_manifest(manifest, file, synthetic=True)
ray.init(
    address="local",
    num_cpus=4,
    object_store_memory=80_000_000,
    include_dashboard=False,
    log_to_driver=False,
    logging_level="ERROR",
)
config = ExtractConfig(
    manifest=file, bank=bank, encoder=EncoderConfig(model="m"), shard_rows=rows
)
load = lambda config, device, threads: Slow()
print(extract(config, load=load, geometry=Geometry(size=224)).rows)
"""


def test_sixteen_shards_pass_through_an_object_store_that_holds_four(tmp_path):
    # 128 frames of 224x224x3 are 19 MB; 16 such shards are 308 MB, and there is room for 80.
    (tmp_path / "pressed.py").write_text(PRESSED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "pressed.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(16 * 128)
    assert verify(Bank(tmp_path / "bank"), read_manifest(tmp_path / "manifest.parquet")).complete
    shutil.rmtree(tmp_path / "bank")
