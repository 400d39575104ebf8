"""Extraction through a real Ray: each frame is encoded once, also after faults and kills."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from raffect.bank.commands import check
from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.config import BankVerifyConfig, EncoderConfig, ExtractConfig, PackConfig, PrepareConfig
from raffect.datasets.frames import read_frames
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION
from raffect.encoders.tower import Encoder, build_model, load_encoder
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.extraction.board import ShardProgress, watch_encoders
from raffect.extraction.estimate import combine, estimate
from raffect.extraction.extract import choose_shards, extract, open_progress
from raffect.extraction.pack import pack
from raffect.extraction.placement import Placement, place_encoders, share_cores
from raffect.extraction.probe import time_encoder
from raffect.extraction.steps import Geometry
from raffect.progress import Progress
from raffect.ray_session.session import NO_PROGRESS_S
from tests.helpers.banks import IDENTITY, TINY, fill_bank, make_manifest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import kill_extract


@pytest.fixture(scope="module")
def config(prepared, tmp_path_factory) -> ExtractConfig:
    return ExtractConfig(
        manifest=prepared / "manifest.parquet",
        bank=tmp_path_factory.mktemp("bank") / "bank",
        encoder=TINY,
        shard_rows=100,
    )


@pytest.fixture(scope="module")
def bank(config, local_ray) -> Bank:
    """The manifest's bank, made in two runs: one has a limit, the other waves of three shards."""
    first = extract(replace(config, limit=150))
    assert (first.shards_done, first.encoded) == (2, 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raffect.extraction.extract.SHARDS_PER_WAVE", 3)
        second = extract(config)
    assert second.shards_done - first.shards_done > 3
    assert second.encoded == second.planned - 200
    assert second.rows == second.planned == len(read_manifest(config.manifest))
    return Bank(config.bank)


def test_features_are_the_encoders_own_in_the_order_of_the_manifest(bank, config):
    import torch

    threads = torch.get_num_threads()
    # What the encoder makes of the manifest's frames
    manifest = read_manifest(config.manifest)
    device = "cuda" if bank.read_identity().precision == "float16" else "cpu"
    expected = load_encoder(TINY, device).encode(read_frames(manifest))
    # What the bank holds
    shards = [pq.read_table(bank.shard_path(shard)) for shard in range(bank.plan.num_shards)]
    cells = [cell for table in shards for cell in table["feature"].to_pylist()]
    stored = np.stack([np.frombuffer(cell, "<f2") for cell in cells])
    keys = [row for table in shards for row in table.select(["video", "frame"]).to_pylist()]
    assert keys == manifest.select(["video", "frame"]).to_pylist()
    np.testing.assert_allclose(
        stored.astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=2e-3
    )
    assert threads == torch.get_num_threads()


def test_the_bank_is_sound_and_names_its_encoder_and_its_runs(bank, config):
    report = check(BankVerifyConfig(bank=config.bank, manifest=config.manifest))
    assert report.ok, report.lines()
    assert bank.read_identity().caveat == "embedded encoder, not CLIP"
    runs = [json.loads(file.read_text()) for file in sorted((config.bank / "runs").glob("*.json"))]
    assert len(runs) == 2
    assert {"versions", "git_commit", "command", "machine"} <= set(runs[0]["run"])
    assert runs[0]["config"]["encoder"]["model"] == "raffect-faces"
    assert sum(run["summary"]["encoded"] for run in runs) == len(bank.plan.table)


def test_a_finished_bank_touches_no_encoder(bank, config):
    def never(encoder, device):
        raise AssertionError("loaded an encoder")

    before = kill_extract.stable_bytes(config.bank)
    summary = extract(config, load=never)
    assert summary.encoded == 0
    assert "nothing to do" in summary.lines()[-2]
    assert kill_extract.stable_bytes(config.bank) == before


def test_another_encoder_on_a_bank_is_refused_finished_or_not(bank, config):
    with pytest.raises(RaffectError, match=r"model: raffect-faces against RN50"):
        extract(replace(config, encoder=EncoderConfig(model="RN50", weights="random:0")))
    fault = r"weights_sha256: .*\(embedded\) against .*\(random:0\)"
    with pytest.raises(RaffectError, match=fault):
        extract(replace(config, encoder=replace(TINY, weights="random:0")))
    # The same for a bank that lacks a shard
    commit = bank.commit_path(1)
    content = commit.read_bytes()
    commit.unlink()
    try:
        with pytest.raises(RaffectError, match=fault):
            extract(replace(config, encoder=replace(TINY, weights="random:0")))
    finally:
        commit.write_bytes(content)


@pytest.mark.cluster
def test_another_file_of_the_same_name_is_refused_by_a_finished_bank(bank, config, tmp_path):
    own, encoders = replace(config, bank=tmp_path / "own"), []
    for number in (0, 1):
        file = tmp_path / "other" / f"{number}" / "w.safetensors"
        file.parent.mkdir(parents=True)
        state = build_model(resolve(replace(TINY, weights=f"random:{number}"))).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        encoders.append(replace(TINY, weights=str(file)))
    extract(replace(own, encoder=encoders[0]))
    assert extract(replace(own, encoder=encoders[0])).encoded == 0
    with pytest.raises(RaffectError, match="weights_sha256"):
        extract(replace(own, encoder=encoders[1]))


def test_a_truncated_shard_is_encoded_again_to_the_same_bytes(bank, config):
    whole = kill_extract.stable_bytes(config.bank)
    bank.shard_path(2).write_bytes(b"PAR1")
    assert extract(config).encoded == 100
    assert kill_extract.stable_bytes(config.bank) == whole


def test_a_plan_and_a_bank_json_that_were_withdrawn_are_made_again_and_nothing_is_encoded(
    bank, config, tmp_path
):
    own = Path(shutil.copytree(config.bank, tmp_path / "bank"))
    whole, identity = kill_extract.stable_bytes(own), Bank(own).read_identity()
    for name in ("bank.json", "plan/0000.parquet"):
        (own / name).write_bytes(b"damaged")
    assert len(check(BankVerifyConfig(bank=own, repair=True)).unreadable) == 2
    assert extract(replace(config, bank=own)).encoded == 0
    assert Bank(own).read_identity() == identity
    assert kill_extract.stable_bytes(own) == whole
    assert check(BankVerifyConfig(bank=own, manifest=config.manifest)).ok


def test_packed_frames_give_the_same_bank_and_bad_frames_are_rejects_with_reasons(
    prepared, tree, tmp_path, local_ray
):
    # 90 pictures, of which one is empty, one not a picture and one missing
    manifest = read_manifest(prepared / "manifest.parquet").slice(0, 90).combine_chunks()
    root = tmp_path / "images"
    for row in manifest.to_pylist():
        (root / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        (root / row["path"]).write_bytes(Path(row["root"], row["path"]).read_bytes())
    paths = manifest["path"].to_pylist()
    (root / paths[3]).write_bytes(b"")
    (root / paths[50]).write_bytes(b"text")
    (root / paths[51]).unlink()
    manifest = manifest.set_column(3, "root", pa.array([str(root)] * 90).dictionary_encode())
    write_manifest(manifest, tmp_path / "m.parquet", synthetic=True)
    # A bank of the loose frames
    config = ExtractConfig(
        manifest=tmp_path / "m.parquet", bank=tmp_path / "loose", encoder=TINY, shard_rows=40
    )
    loose = extract(config)
    # A bank of the packed frames, of which the packed copies alone are read
    out = tmp_path / "packed"
    report = pack(PackConfig(manifest=config.manifest, out=out, shard_rows=40, groups_per_file=2))
    assert (report.unreadable, len(report.files), report.frames) == (2, 2, 90)
    assert report.size_bytes == sum(file.stat().st_size for file in report.files)
    assert "into 2 file(s)" in report.lines()[0]
    (root / paths[3]).unlink()
    packed = extract(
        replace(config, manifest=out / "manifest.parquet", bank=tmp_path / "packed-bank")
    )
    # Both are the same
    reasons = ("empty file", "not a picture", "cannot be read: No such file or directory")
    for summary in (loose, packed):
        assert (summary.rows, summary.rejects, summary.planned) == (87, 3, 90)
        assert summary.reasons == dict.fromkeys(reasons, 1)
        assert summary.reject_share == pytest.approx(3 / 90)
    banks = [kill_extract.stable_bytes(tmp_path / name) for name in ("loose", "packed-bank")]
    assert banks[0] == banks[1]
    assert verify(Bank(tmp_path / "loose"), manifest).complete


def test_a_folder_that_is_not_a_bank_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(RaffectError, match="is not a bank"):
        extract(replace(config, bank=tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_images_that_were_not_drawn_need_allow_embedded(config, tmp_path):
    manifest = read_manifest(config.manifest).slice(0, 5)
    write_manifest(manifest, tmp_path / "m.parquet", synthetic=False)
    with pytest.raises(RaffectError, match="--allow-embedded"):
        extract(replace(config, manifest=tmp_path / "m.parquet", bank=tmp_path / "bank"))
    assert not (tmp_path / "bank").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(config, tmp_path, local_ray):
    lines = estimate(replace(config, bank=tmp_path / "bank")).lines()
    assert "would encode" in lines[0]
    assert any("frames/s" in line for line in lines)
    assert not (tmp_path / "bank").exists()


def test_an_encoder_has_as_many_threads_for_the_last_shard_as_for_the_first(config, local_ray):
    config = replace(config, num_actors=2, device="cpu")
    assert place_encoders(config, 1).threads == place_encoders(config, 100).threads
    assert place_encoders(config, 1).actors == 1


@pytest.mark.parametrize(
    ("actors", "share", "nodes", "threads"),
    [
        (1, 0, [{"CPU": 8}], 8),
        (2, 0, [{"CPU": 8}], 4),
        (16, 0, [{"CPU": 8}], 1),
        (2, 0, [{"CPU": 8}, {"CPU": 6}], 6),
        (3, 0, [{"CPU": 8}, {"CPU": 6}], 3),
        (2, 0, [{"CPU": 8}, {"CPU": 6}, {"memory": 1}], 6),
        (4, 1, [{"CPU": 32, "GPU": 4}, {"CPU": 2}], 8),
        (6, 1, [{"CPU": 32, "GPU": 4}, {"CPU": 12, "GPU": 2}], 6),
        (8, 0.5, [{"CPU": 32, "GPU": 4}], 4),
        (1, 1, [{"CPU": 32, "GPU": 4}], 32),
        (1, 1, [{"CPU": 2}], 1),
    ],
)
def test_threads_are_the_cores_of_the_smallest_node_over_its_encoders(
    actors, share, nodes, threads
):
    assert share_cores(actors, share, nodes) == threads


@pytest.mark.cluster
def test_threads_are_decided_once_a_bank_and_kept_in_reruns(config, tmp_path, local_ray):
    config = replace(config, bank=tmp_path / "bank", threads=3, limit=100)
    extract(config)
    bank = Bank(config.bank)
    assert bank.read_file().threads == 3
    # Whatever the machine is like now, the rest is encoded with as many
    seen = tmp_path / "threads"

    def load(encoder, device, threads):
        seen.write_text(str(threads))
        return load_encoder(encoder, device)

    extract(replace(config, threads=None, num_actors=2), load=load)
    assert seen.read_text() == "3"
    assert bank.read_file().threads == 3
    with pytest.raises(RaffectError, match="--threads 2: .* was made with 3"):
        extract(replace(config, threads=2))


def test_more_gpus_than_there_are_is_one_clear_error(config, tmp_path, local_ray):
    with pytest.raises(RaffectError, match=r"Ray sees [01] GPUs"):
        extract(replace(config, bank=tmp_path / "bank", gpus_per_actor=2.0))


def test_an_encoder_that_never_starts_ends_the_run_with_one_line(
    config, tmp_path, monkeypatch, local_ray
):
    def load(config, device, threads):
        time.sleep(600)

    monkeypatch.setattr(
        "raffect.ray_session.session.NO_PROGRESS_S", dict.fromkeys(NO_PROGRESS_S, 8)
    )
    fault = r"nothing moved for 8\.0 s: the cluster lacks .* goes on from there"
    with pytest.raises(RaffectError, match=fault):
        extract(replace(config, bank=tmp_path / "bank"), load=load, geometry=Geometry(size=32))


@pytest.mark.cluster
def test_a_run_in_which_nothing_moves_ends_with_one_line(config, tmp_path, monkeypatch, local_ray):
    class Stuck(Encoder):
        def encode(self, frames):
            time.sleep(600)

    def load(config, device, threads):
        encoder = load_encoder(config, device)
        encoder.__class__ = Stuck
        return encoder

    monkeypatch.setattr(
        "raffect.ray_session.session.NO_PROGRESS_S", dict.fromkeys(NO_PROGRESS_S, 8)
    )
    with pytest.raises(RaffectError, match=r"nothing moved for 8\.0 s: .* goes on from there"):
        extract(replace(config, bank=tmp_path / "bank"), load=load)


@pytest.mark.cluster
def test_encoders_that_die_while_they_load_are_started_again(config, tmp_path, local_ray):
    """As on a node that is lost or out of memory."""

    def load(config, device, threads):
        with suppress(FileExistsError):
            (tmp_path / "died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return load_encoder(config, device)

    two = replace(config, bank=tmp_path / "bank", num_actors=2, device="cpu")
    summary = extract(two, load=load)
    assert (tmp_path / "died").exists()
    assert summary.rows + summary.rejects == summary.planned


def load_stand_in(config, device, threads):
    """An encoder without torch, whose caveat is what its process looks like."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
    seen = [device, threads, os.nice(0), *(os.environ.get(name) for name in names)]
    return SimpleNamespace(
        identity=replace(IDENTITY, caveat=json.dumps(seen)),
        batch_size=8,
        encode=lambda frames: np.zeros((len(frames), IDENTITY.dim), np.float16),
        probe=lambda: 1.0,
    )


@pytest.mark.cluster
def test_a_dry_run_probes_with_the_threads_priority_and_environment_of_the_run(
    config, tmp_path, local_ray, monkeypatch
):
    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.1)
    config = replace(config, bank=tmp_path / "bank", num_actors=2, limit=100)
    guess = estimate(config, load_stand_in)
    assert not (tmp_path / "bank").exists()
    extract(config, load_stand_in, Geometry(size=32))
    assert guess.caveat == Bank(tmp_path / "bank").read_identity().caveat
    assert (guess.frames, guess.threads) == (100, place_encoders(config, 1).threads)


def test_a_dry_run_probes_with_the_threads_of_the_bank(config, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.1)
    bank, config = Bank(tmp_path / "bank"), replace(config, bank=tmp_path / "bank", limit=100)
    bank.extend_plan(read_manifest(config.manifest), 100)
    threads = place_encoders(config, 1).threads + 1  # not what this machine would have
    bank.claim(IDENTITY, threads)
    guess = estimate(config, load_stand_in)
    assert (guess.threads, json.loads(guess.caveat)[1]) == (threads, threads)


@pytest.mark.parametrize("batch", [1, 100, 2048, 4096])
def test_a_probe_encodes_whole_batches_also_where_one_is_larger_than_a_shard(monkeypatch, batch):
    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.05)
    sizes = []

    def encode(frames):
        sizes.append(len(frames))
        time.sleep(0.01)

    rate = time_encoder(SimpleNamespace(batch_size=batch, encode=encode), [np.zeros(1)])
    assert 0 < rate < float("inf")
    assert all(size and size % batch == 0 for size in sizes)
    assert max(sizes) <= max(batch, 2048)


def test_a_dry_run_says_when_a_device_like_this_one_would_be_refused(
    config, tmp_path, local_ray, monkeypatch
):
    def load(config, device, threads):
        """As on a GPU, whose precision is another one."""
        precision = "float16" if config.precision == "auto" else config.precision
        encoder = load_stand_in(config, device, threads)
        return SimpleNamespace(
            **vars(encoder) | {"identity": replace(IDENTITY, precision=precision)}
        )

    bank = Bank(tmp_path / "bank")
    bank.extend_plan(read_manifest(config.manifest), 32)
    bank.claim(IDENTITY)
    config = replace(config, bank=bank.path)
    lines = estimate(config, load).lines()
    assert "would encode" in lines[0]
    assert any("refused, unless you add --encoder.precision float32" in line for line in lines)
    # A precision that is asked for, and that is not the bank's
    encoder = replace(config.encoder, precision="bfloat16")
    with pytest.raises(RaffectError, match="precision"):
        estimate(replace(config, encoder=encoder), load)


def test_a_dry_run_with_an_encoder_that_cannot_be_loaded_is_one_line(config, tmp_path, local_ray):
    def load(config, device, threads):
        raise RaffectError("weights are damaged; bring them again")

    with pytest.raises(RaffectError, match=r"^weights are damaged; bring them again$"):
        estimate(replace(config, bank=tmp_path / "bank"), load)

    def die(config, device, threads):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RaffectError, match=r"^Ray stopped the run: [^\n]*$"):
        estimate(replace(config, bank=tmp_path / "bank"), die)


def test_readers_and_encoders_share_cores_on_a_cpu_and_the_slower_one_decides_on_a_gpu(config):
    on_cpu = Placement(actors=1, gpus_per_actor=0, device="cpu", threads=2, may_grow=False)
    on_gpu = replace(on_cpu, gpus_per_actor=1, device="cuda")
    probe = SimpleNamespace(read_s=0.02, read_cpu_s=0.01)
    # 100 frames take 1 s of both cores, and their readers 1 s of one
    assert combine(config, on_cpu, probe, 100.0, 2) == pytest.approx(100 / 1.5)
    assert combine(config, on_cpu, probe, 100.0, 16) == 100  # cores are left for readers
    assert combine(config, on_gpu, probe, 100.0, 16) == 100
    assert combine(config, on_gpu, probe, 5000.0, 16) == pytest.approx(16 / 0.02)
    assert combine(replace(config, cpus_per_read=2), on_gpu, probe, 5e3, 16) == pytest.approx(400)


@pytest.mark.cluster
def test_frames_of_an_unfinished_shard_are_shown_also_when_its_encoder_dies(
    config, tmp_path, local_ray, monkeypatch, capfd
):
    monkeypatch.setattr("raffect.progress.FIRST_PLAIN_S", 0.0)
    monkeypatch.setattr("raffect.progress.PLAIN_EVERY_S", 0.0)

    def load(config, device, threads):
        def encode(frames):
            time.sleep(len(frames) / 16)
            if len(calls) == 1:
                with suppress(FileExistsError):
                    (tmp_path / "died").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            calls.append(len(frames))
            return np.zeros((len(frames), IDENTITY.dim), np.float16)

        calls = []
        encoder = load_stand_in(config, device, threads)
        return SimpleNamespace(**vars(encoder) | {"encode": encode, "probe": lambda: 8.0})

    one_shard = replace(config, bank=tmp_path / "bank", limit=1)
    assert extract(one_shard, load, Geometry(size=32)).rows == 100
    assert (tmp_path / "died").exists()
    shown = re.findall(r"extract: ([\d,]+) of 100 frames", capfd.readouterr().err)
    under_way = {int(count) for count in shown} - {0, 100}
    assert len(under_way) >= 3
    assert all(count % 8 == 0 for count in under_way)  # whole batches


def test_a_run_that_goes_on_counts_the_frames_of_earlier_runs(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}), rejects={1: {3: "empty file"}})
    bank.commit_path(0).unlink()
    bank.commit_path(2).unlink()
    plan, done = bank.plan, bank.read_commits()
    with open_progress(plan, done, choose_shards(plan, done, None)) as progress:
        assert (progress.earlier, progress.total) == (16, 40)
    with open_progress(plan, done, choose_shards(plan, done, 10)) as progress:
        assert (progress.earlier, progress.total) == (16, 32)


def test_a_board_that_dies_is_started_again_and_a_dead_one_stops_nothing(local_ray):
    import ray

    class Heard(ShardProgress):
        def update(self, news):
            heard.update(news)

    def wait_for(key):
        deadline = time.monotonic() + 30
        while key not in heard and time.monotonic() < deadline:
            reporter.encoded(key, 8)
            time.sleep(0.2)
        return heard.get(key)

    heard = {}
    with Progress("extract", 100) as progress, watch_encoders(Heard(progress)) as reporter:
        assert wait_for(1) == 8
        ray.kill(reporter._board, no_restart=False)
        assert wait_for(2) == 8
        ray.kill(reporter._board)
        reporter.encoded(3, 8)
    assert 3 not in heard


@pytest.mark.cluster
@pytest.mark.parametrize(("setting", "nice"), [({}, 15), ({"RAY_worker_niceness": "0"}, 0)])
def test_workers_have_the_niceness_and_the_waiting_that_the_page_names(setting, nice):
    code = (
        "import os, ray\n"
        "from raffect.ray_session.session import ray_session\n"
        "look = lambda: (os.nice(0), os.environ['OMP_WAIT_POLICY'])\n"
        "with ray_session(None):\n"
        "    print(ray.get(ray.remote(look).remote()))\n"
    )
    known = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=known | setting,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str((min(19, os.nice(0) + nice), "PASSIVE"))
    # One line when it begins, one with its time
    begun, ended, *_ = done.stderr.splitlines()
    assert begun == "starting Ray ..."
    assert ended.startswith("starting Ray: ")


@pytest.mark.cluster
def test_killed_drivers_and_workers_lose_and_change_nothing(tree, tmp_path):
    """A few kills; `scripts/kill_extract.py` does the full count."""
    # A bank that is made without a kill
    out, roots = tmp_path / "data", (tree / "cropped_aligned",)
    prepare(PrepareConfig(images=roots, annotations=tree / EDITION, out=out))
    manifest = out / "manifest.parquet"
    kill_extract.finish(kill_extract.start_extract(manifest, tmp_path / "whole", 32))
    whole = kill_extract.stable_bytes(tmp_path / "whole")
    # Banks made with a kill of each kind
    kills = {
        "driver": lambda *args: kill_extract.kill_drivers(*args[:5], 14.0, *args[5:]),
        "worker": kill_extract.kill_workers,
    }
    for name, kill in kills.items():
        tally = kill_extract.Tally()
        (tmp_path / name).mkdir()
        kill(random.Random(1), manifest, tmp_path / name, whole, 1, 32, tally)
        assert tally.kills == 1
        assert tally.banks >= 1
