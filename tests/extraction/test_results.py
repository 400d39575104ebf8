"""Results of data and extraction commands agree with the disk, and their lines are printed."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
from pathlib import Path

import pytest

import raffect
from raffect.bank.commands import check, info
from raffect.bank.export import export
from raffect.bank.inspect import BankFacts
from raffect.bank.verify import Verification
from raffect.cli import main
from raffect.config import (
    BankExportConfig,
    BankInfoConfig,
    BankVerifyConfig,
    DoctorConfig,
    ModelsListConfig,
    ModelsPathConfig,
    ModelsVerifyConfig,
)
from raffect.datasets.synthetic.tree import EDITION
from raffect.encoders import catalogue as models
from raffect.encoders.tower import CPU_BATCH, CUDA_BATCH
from raffect.pipelines import doctor
from tests.helpers.banks import TINY, fill_bank, make_manifest

REJECTS = {1: {3: "empty file"}}
COUNTS = {"a": 20, "b": 13}


@pytest.fixture
def bank(tmp_path):
    return fill_bank(tmp_path / "bank", make_manifest(COUNTS), rejects=REJECTS)


def printed(capsys, words: str) -> list[str]:
    capsys.readouterr()
    main(shlex.split(words))
    return capsys.readouterr().out.splitlines()


def is_frozen(result) -> bool:
    return dataclasses.is_dataclass(result) and result.__dataclass_params__.frozen


@pytest.fixture(scope="module")
def report(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    roots = (tree / "cropped_aligned",)
    return raffect.prepare(raffect.PrepareConfig(images=roots, annotations=tree / EDITION, out=out))


def test_prepare_counts_what_is_on_the_disk(report):
    assert is_frozen(report)
    assert report.frames == len(raffect.read_manifest(report.manifest))
    assert set(report.labels) == {"expr", "au", "va"}
    assert report.synthetic
    for name, path in report.labels.items():
        splits = raffect.read_labels(path)["split"].to_pylist()
        for part in report.counts:
            if part.task == name:
                assert part.rows == splits.count(part.split)
                assert part.with_image <= part.labelled <= part.rows
    rows = list(csv.DictReader(report.problems_file.open()))
    assert [row["problem"] for row in rows] == [problem.what for problem in report.problems]


def test_prepare_makes_a_data_frame_of_its_counts(report):
    frame = report.to_pandas()
    assert list(frame.columns) == ["task", "split", "rows", "labelled", "with_image", "groups"]
    assert len(frame) == len(report.counts) == 6


def test_prepare_prints_its_lines(report, tree, capsys):
    images, annotations = tree / "cropped_aligned", tree / EDITION
    words = f"--images {images} --annotations {annotations} --out {report.manifest.parent}"
    out = printed(capsys, f"prepare {words}")
    # The line about images has seconds in it, which differ.
    lines = [
        [line for line in one if not line.startswith("images: ")] for one in (out, report.lines())
    ]
    assert lines[0] == lines[1]


@pytest.mark.cluster
def test_a_notebook_prepares_extracts_and_reads(report, tmp_path, local_ray):
    config = raffect.ExtractConfig(
        manifest=report.manifest, bank=tmp_path / "bank", encoder=TINY, shard_rows=100
    )
    # An estimate
    plan = raffect.estimate(config)
    assert isinstance(plan, raffect.Estimate)
    assert (plan.frames, plan.listed, plan.shard_rows) == (report.frames, report.frames, 100)
    assert not (tmp_path / "bank").exists()
    # A run
    summary = raffect.extract(config)
    assert isinstance(summary, raffect.ExtractSummary)
    assert is_frozen(summary)
    bank = raffect.Bank(tmp_path / "bank")
    commits = bank.read_commits()
    assert summary.rows == sum(commit.rows for commit in commits.values()) == report.frames
    assert (summary.shards_done, summary.shards_planned) == (len(commits), bank.plan.num_shards)
    sizes = [path.stat().st_size for path in (bank.path / "shards").iterdir()]
    assert summary.bytes_written == sum(sizes)
    on_cuda = bank.read_identity().precision == "float16"
    assert summary.batch_sizes == (CUDA_BATCH if on_cuda else CPU_BATCH,)
    steps = {"read", "decode", "wait", "encode", "commit", "feed_cpu"}
    assert set(summary.seconds_per_frame) == steps
    # Its summary in the bank, and a second run that has nothing to do
    (run,) = (bank.path / "runs").iterdir()
    stored = json.loads(run.read_bytes())["summary"]
    assert raffect.ExtractSummary.from_json(stored, run, "extract again") == summary
    again = raffect.extract(config)
    assert (again.encoded, again.rows) == (0, summary.rows)
    # Its features
    expr = raffect.read_labels(report.labels["expr"])
    features = raffect.read_features(bank, expr, raffect.EXPR, "train")
    (part,) = (part for part in report.counts if (part.task, part.split) == ("expr", "train"))
    assert len(features.x) == part.with_image


@pytest.mark.cluster
def test_extract_prints_its_lines_and_what_comes_next(report, tmp_path, local_ray, capsys):
    words = f"extract --manifest {report.manifest} --bank {tmp_path / 'bank'}"
    words += " --encoder.model raffect-faces --encoder.weights embedded --shard-rows 100"
    printed(capsys, words)
    out = printed(capsys, words)
    config = raffect.ExtractConfig(manifest=report.manifest, bank=tmp_path / "bank", encoder=TINY)
    following = f"next: raffect bank verify --bank {tmp_path / 'bank'}"
    assert out == [*raffect.extract(config).lines(), following]


def test_bank_facts_agree_with_the_disk_and_with_json(bank, capsys):
    facts = info(BankInfoConfig(bank=bank.path))
    assert is_frozen(facts)
    files = [*(bank.path / "shards").iterdir(), *(bank.path / "rejects").iterdir()]
    assert facts.bytes == sum(path.stat().st_size for path in files)
    assert (facts.rows, facts.rejects, facts.missing) == (32, 1, 0)
    assert (facts.shards.planned, facts.shards.committed, facts.shards.rows) == (3, 3, 16)
    assert facts.digest == bank.digest()
    assert printed(capsys, f"bank info --bank {bank.path}") == facts.lines()
    text = "\n".join(printed(capsys, f"bank info --bank {bank.path} --json"))
    assert json.loads(text) == facts.to_json()
    assert BankFacts.from_json(text, "stdout", "print it again") == facts


def test_a_bank_is_counted_by_video(bank):
    table = raffect.count_videos(bank)
    assert table.to_pylist() == [
        {"video": "a", "planned": 20, "features": 19, "rejects": 1, "missing": 0},
        {"video": "b", "planned": 13, "features": 13, "rejects": 0, "missing": 0},
    ]
    bank.commit_path(1).unlink()
    assert raffect.count_videos(bank)["missing"].to_pylist() == [4, 12]


def test_verify_says_ok_as_its_exit_status_does(bank, capsys):
    words = f"bank verify --bank {bank.path}"
    found = check(BankVerifyConfig(bank=bank.path))
    assert found.ok
    assert is_frozen(found)
    assert isinstance(found, Verification)
    assert found.rows + found.rejects == found.planned == 33
    assert printed(capsys, words) == found.lines()
    bank.shard_path(0).write_bytes(b"x")
    found = check(BankVerifyConfig(bank=bank.path))
    assert not found.ok
    assert (list(found.damaged), found.damaged_rows, found.repaired) == ([0], 16, None)
    assert printed(capsys, words) == found.lines()
    repaired = check(BankVerifyConfig(bank=bank.path, repair=True))
    assert (repaired.repaired, repaired.ok) == ((0,), False)
    assert not bank.commit_path(0).exists()
    retried = check(BankVerifyConfig(bank=bank.path, retry_rejects=True))
    assert retried.retried == (1,)
    assert "read their frames again" in retried.lines()[-1]


@pytest.mark.parametrize("kind", ["npy", "list"])
def test_an_export_says_what_it_wrote(bank, tmp_path, kind, capsys):
    done = export(BankExportConfig(bank=bank.path, out=tmp_path / "out", format=kind))
    assert is_frozen(done)
    assert (done.rows, done.rejects, done.missing, done.planned) == (32, 1, 0, 33)
    assert done.files == len(list(tmp_path.glob("out/features/*.parquet")))
    identity = json.loads((tmp_path / "out" / "identity.json").read_text())
    assert identity == bank.read_identity().to_json()
    again = tmp_path / "again"
    out = printed(capsys, f"bank export --bank {bank.path} --out {again} --format {kind}")
    assert out == [line.replace(str(done.out), str(again)) for line in done.lines()]


def test_packed_files_are_those_that_the_report_names(report, tmp_path, capsys):
    config = raffect.PackConfig(
        manifest=report.manifest, out=tmp_path / "packed", shard_rows=64, groups_per_file=2
    )
    done = raffect.pack(config)
    assert is_frozen(done)
    assert sorted(done.files) == sorted(tmp_path.glob("packed/frames-*.parquet"))
    assert done.size_bytes == sum(file.stat().st_size for file in done.files)
    assert done.frames == len(raffect.read_manifest(done.manifest)) == report.frames
    words = f"--manifest {report.manifest} --out {config.out} --shard-rows 64 --groups-per-file 2"
    assert printed(capsys, f"pack {words}") == done.lines()


def test_models_are_listed_as_objects_and_as_a_data_frame(capsys):
    found = models.list_models(ModelsListConfig(pattern="raffect"))
    (own,) = found.weights
    assert (own.model, own.tag) == ("raffect-faces", "embedded")
    assert own.file.name == "raffect-faces.safetensors"
    assert list(found.to_pandas().columns) == ["model", "tag", "file"]
    assert printed(capsys, "models list --pattern raffect") == found.lines()
    path = models.path(ModelsPathConfig(encoder=TINY))
    assert path.file == own.file
    words = "models path --encoder.model raffect-faces --encoder.weights embedded"
    assert printed(capsys, words) == path.lines() == [str(own.file)]


def test_weights_are_described_with_their_fingerprint():
    found = models.verify(ModelsVerifyConfig(encoder=TINY))
    assert is_frozen(found)
    assert found.size_bytes == found.file.stat().st_size
    assert (found.dim, found.is_published) == (256, False)
    assert found.fingerprint == raffect.load_encoder(TINY, "cpu").identity.weights_sha256


def test_a_diagnosis_has_the_checks_that_were_shown_one_by_one(bank, capsys):
    seen = []
    found = doctor.diagnose(DoctorConfig(bank=bank.path, start_ray=False), seen.append)
    assert found.checks == tuple(seen)
    assert found.ok is not any(check.ok is False for check in seen)
    lines = printed(capsys, f"doctor --bank {bank.path} --no-start-ray")[:-1]
    assert [line[5:15].strip() for line in lines] == [check.name for check in found.checks]
    assert found.lines()[-1] == found.conclusion


def test_only_the_reader_of_records_parses_json():
    package = Path(raffect.__file__).parent
    using = {path.stem for path in package.rglob("*.py") if "json.load" in path.read_text()}
    assert using == {"records", "loader"}  # the loader is handed on, to run without raffect
