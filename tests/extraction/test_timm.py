"""A bank of a timm tower from frames to a head: through Ray, and refused where texts are needed."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import EncoderConfig, ExtractConfig
from raffect.datasets.frames import read_frames
from raffect.datasets.manifest import read_manifest
from raffect.encoders.tower import load_encoder
from raffect.errors import RaffectError
from raffect.extraction.extract import extract

pytestmark = pytest.mark.cluster  # Ray loads timm in its actor: more than 5 s
ENCODER = EncoderConfig(model="timm:test_vit.r160_in1k", weights="random:0", image_size=96)


@pytest.fixture(scope="module")
def config(prepared, tmp_path_factory, local_ray):
    config = ExtractConfig(
        manifest=prepared / "manifest.parquet",
        bank=tmp_path_factory.mktemp("timm") / "bank",
        encoder=ENCODER,
    )
    extract(config)
    return config


def test_a_bank_holds_the_vectors_of_its_tower(config):
    bank = Bank(config.bank)
    manifest = read_manifest(config.manifest)
    identity = bank.require_identity()
    assert (identity.model, identity.dim) == (ENCODER.model, 64)
    assert identity.preprocess["size"] == 96
    assert identity.preprocess["resize_to"] == 101  # floor(96 / 0.95), as timm has it
    # Both are sorted by video and frame.
    shard = pq.read_table(min((config.bank / "shards").iterdir()))
    assert shard["frame"].to_pylist() == manifest["frame"].to_pylist()[: len(shard)]
    rows = np.linspace(0, len(shard) - 1, 5).astype(int)
    expected = load_encoder(ENCODER, "cpu").encode(read_frames(manifest.take(rows)))
    stored = shard["feature"].take(rows).to_pylist()
    found = np.stack([np.frombuffer(each, np.float16) for each in stored])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_size": 0}, "'size': 160"),
        ({"image_size": 112}, "'size': 112"),
        ({"view": "flip"}, "'view': 'flip'"),
        ({"weights": "random:1"}, "random:1"),
        ({"model": "timm:test_vit"}, "timm:test_vit"),
    ],
)
def test_another_size_view_seed_or_name_on_a_finished_bank_is_refused(config, change, named):
    with pytest.raises(RaffectError, match="made by another encoder") as error:
        extract(replace(config, encoder=replace(ENCODER, **change)))
    assert named in str(error.value)
    assert extract(config).encoded == 0


def test_a_head_learns_from_it_and_texts_refuse_it(config, prepared, tmp_path, capsys):
    data = ["--task", "expr", "--bank", str(config.bank), "--labels", str(prepared)]
    assert main(["train", *data, "--out", str(tmp_path / "run"), "--epochs", "1"]) == 0
    capsys.readouterr()
    table = prepared / "labels" / "au.parquet"
    captions = ["captions", "--bank", str(config.bank), "--from-labels"]
    for command in (
        ["zeroshot", *data, "--out", str(tmp_path / "zeroshot")],
        ["learn-prompts", *data, "--out", str(tmp_path / "prompts")],
        [*captions, str(table), "--out", str(tmp_path / "captions.parquet")],
    ):
        assert main(command) == 2, command
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "made by timm:test_vit.r160_in1k, which has no text tower" in error
