"""Extraction through a real Ray: each frame is encoded once, also after faults and kills."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from raffect.bank.commands import check
from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.config import BankVerifyConfig, EncoderConfig, ExtractConfig, PackConfig
from raffect.datasets.frames import read_frames
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.encoders.tower import Encoder, build_model, load_encoder
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.extraction.extract import extract
from raffect.extraction.pack import pack
from raffect.extraction.steps import Geometry
from raffect.ray_session.session import NO_PROGRESS_S
from tests.helpers.banks import TINY

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import kill_extract


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


@pytest.mark.cluster
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


@pytest.mark.cluster
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


@pytest.mark.cluster
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


def test_more_gpus_than_there_are_is_one_clear_error(config, tmp_path, local_ray):
    with pytest.raises(RaffectError, match=r"Ray sees [01] GPUs"):
        extract(replace(config, bank=tmp_path / "bank", gpus_per_actor=2.0))


@pytest.mark.cluster
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
