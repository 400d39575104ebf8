"""What encoders cost: the rate of a bank's extraction, and the figure of scores against costs."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from raffect.bank.format import Bank
from raffect.datasets.affwild2.tasks import EXPR
from raffect.errors import RaffectError
from raffect.extraction.rates import read_rate
from raffect.extraction.summary import ExtractSummary
from raffect.metrics.scores import Chance
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import Machine, describe_run
from raffect.reporting.compare import draw_comparison


def write_summary(bank, number, frames, rate, **more):
    """What an extraction leaves in a bank."""
    summary = ExtractSummary(
        planned=frames, encoded=frames, steady_frames_per_s=rate, encoders=1, **more
    )
    run = replace(describe_run(), machine=Machine(system="Linux", cores=2))
    content = {"run": run.to_json(), "config": {}, "summary": summary.to_json()}
    (bank / "runs").mkdir(parents=True, exist_ok=True)
    (bank / "runs" / f"{number}.json").write_text(json.dumps(content))


def test_the_rate_of_a_bank_is_all_its_frames_over_all_their_time(tmp_path):
    bank = Bank(tmp_path / "bank")
    assert read_rate(bank) == (
        None,
        "its extraction left no rate, since it was stopped before its end",
    )
    write_summary(bank.path, 1, 300, 100.0)
    write_summary(bank.path, 2, 100, 10.0)
    write_summary(bank.path, 3, 0, 0.0)  # nothing to do
    rate, why = read_rate(bank)
    assert rate.frames_per_s == pytest.approx(400 / (3 + 10))
    assert (rate.frames, rate.encoders, why) == (400, 1, "")
    assert rate.where() == "1 encoder(s) on the CPU (Linux, 2 cores)"
    # Parts that were made on other devices have no rate together
    write_summary(bank.path, 4, 100, 900.0, gpus=1.0)
    assert read_rate(bank)[0] is None
    (bank.path / "runs" / "5.json").write_text("{")
    with pytest.raises(RaffectError, match="5.json: damaged"):
        read_rate(bank)


def rows_of_figure(rates, recipes=("erm",)):
    return [
        {
            "letter": "ABC"[k],
            "encoder": f"timm:vit_base_patch14_reg4_dinov2.lvd142m@{k}",
            "recipe": recipe,
            "mean": 0.3 + 0.1 * k,
            "low": None if k == 2 else 0.2 if k else np.nextafter(0.3, 1),  # rounding of an end
            "high": None if k == 2 else 0.6,
            "frames_per_s": rate,
            "gflop": None if k == 1 else 4.4 * (k + 1),
            "bank_bytes": 10_000_000 * (k + 1),
            "caveat": "random weights; drawn faces",
        }
        for recipe in recipes
        for k, rate in enumerate(rates)
    ]


@pytest.mark.parametrize("rates", [(12.0, 3000.0, 400.0), (None, 9.0, None), (None, None, None)])
def test_the_figure_has_a_place_for_every_bank(tmp_path, rates):
    chance = Chance(answer="always Other", majority=0.07, prior=0.125)
    rows = rows_of_figure(rates, ("erm", "paper"))
    draw_comparison(rows, chance, "EXPR", kind_of(EXPR), tmp_path / "compare")
    width, height = Image.open(tmp_path / "compare.png").size
    assert width < 1100 < height * 1.5
    with (tmp_path / "compare.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
