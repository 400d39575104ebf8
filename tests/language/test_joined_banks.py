"""Texts and joined banks: a mean of views is in the space of texts, a concatenation is not."""

from dataclasses import replace
from pathlib import Path

import raffect
from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank
from raffect.bank.join import join_banks
from raffect.cli import main
from raffect.config import ZeroshotConfig
from tests.helpers.commands import error_line
from tests.helpers.texts import embedded


def copy_as_view(source: Bank, path: Path) -> None:
    """A bank of the same vectors, which is called another view."""
    identity = embedded()
    view = replace(identity, preprocess={**identity.preprocess, "view": "flip"})
    bank = Bank(path)
    bank.claim(view)
    plan = bank.extend_plan(source.plan.table, 64)
    for shard, record in source.read_commits().items():
        x = read_shard_features(source, record, identity.dim)
        bank.commit(shard, plan.rows(shard), x, {}, view)


def test_texts_classify_a_mean_of_views_and_refuse_a_concatenation(texts, tmp_path, capsys):
    copy_as_view(Bank(texts / "bank"), tmp_path / "flip")
    parts = [texts / "bank", tmp_path / "flip"]
    join_banks(parts, tmp_path / "mean", "average")

    # Views that agree have their own vector as mean, and so every score of it
    found = [
        raffect.zeroshot(
            ZeroshotConfig(
                bank=bank, labels=texts, out=tmp_path / name, task="expr", prompts=("facs",)
            )
        )
        for name, bank in (("plain run", texts / "bank"), ("mean run", tmp_path / "mean"))
    ]
    assert repr(found[0].scores) == repr(found[1].scores)

    # A concatenation is refused in one line, before anything is written
    words = ["--labels", str(texts), "--out", str(tmp_path / "no"), "--task", "expr"]
    joined = str(tmp_path / "side by side")
    join_banks(parts, tmp_path / "side by side")
    assert main(["zeroshot", "--bank", joined, *words]) == 2
    error = error_line(capsys.readouterr().err)
    assert "texts can only be compared with vectors of one encoder, or with a mean of" in error
    assert not (tmp_path / "no").exists()
