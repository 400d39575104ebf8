"""The card of an exported file says what a reader must know, and its code runs."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard

from raffect.bank.facts import SplitFacts
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.export import formats
from raffect.heads.checkpoint import read_card
from raffect.metrics.scores import Chance
from tests.helpers.banks import IDENTITY
from tests.helpers.exports import FORMATS, LICENCE, choose, export
from tests.helpers.heads import make_head


@pytest.mark.parametrize("form", FORMATS)
def test_the_code_of_a_card_runs_in_its_folder_without_raffect(tmp_path, runs, form):
    export(tmp_path, runs, form)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / form / "README.md").read_text(), re.S)
    code = "import sys; sys.modules['raffect'] = None\n" + code
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / form, capture_output=True, text=True, check=True)
    for name in ("expr_probabilities", "expr_class", "au_labels", "va_values"):
        assert name in done.stdout


def test_the_loader_of_a_card_is_what_the_file_was_checked_with(tmp_path, runs):
    export(tmp_path, runs, "safetensors")
    text = (tmp_path / "safetensors" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {}
    exec(code.rpartition("\n\nprint")[0], names)
    file, x = tmp_path / "safetensors" / "model.safetensors", np.ones((5, IDENTITY.dim))
    expected = formats.FORMATS["safetensors"].open(tmp_path / "safetensors")(x)
    for name, values in names["predict"](file, x).items():
        np.testing.assert_array_equal(values, expected[name])


def test_the_card_is_one_of_the_hubs_with_scores_licences_and_what_the_file_lacks(tmp_path, runs):
    choose(runs)
    result = export(tmp_path, runs, "safetensors", licence="cc-by-nc-4.0")
    card = ModelCard.load(tmp_path / "safetensors" / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-nc-4.0", "raffect")
    assert [found.dataset_config for found in card.data.eval_results] == ["expr", "au", "va"]
    assert [found.metric_value for found in card.data.eval_results] == [0.5] * 3
    assert LICENCE in card.text
    assert "**not in the file**" in card.text
    assert "these are the plain rules" in card.text  # of VA
    assert "Neutral ± 2" in card.text
    assert IDENTITY.weights_sha256 in card.text
    assert "chosen on validation: optimistic" in card.text
    assert "EXPR: means over time are not in the file" in "\n".join(result.lines())


def test_scores_on_drawn_faces_and_random_weights_are_labelled_wherever_they_stand(tmp_path):
    encoder = replace(IDENTITY, caveat="random weights")
    make_head(tmp_path / "h", EXPR, encoder=encoder)
    card = read_card(tmp_path / "h")
    data = replace(card.data, synthetic=True, caveat="random weights; drawn faces")
    interval = replace(card.validation, interval_95=(0.4, 0.6))
    make_head(tmp_path / "h", EXPR, encoder=encoder, data=data, validation=interval)
    result = export(tmp_path, (tmp_path / "h",), "safetensors")
    text = (tmp_path / "safetensors" / "README.md").read_text()
    found = ModelCard(text).data.eval_results[0]
    for caveat in ("random weights", "drawn faces"):
        assert f"Caveat: {caveat}." in text
        assert found.dataset_name.count(caveat) == 1
        assert f"caveat: {caveat}" in result.lines()
    assert "[.400, .600]" in found.metric_name
    assert found.dataset_name == "drawn faces, validation split, random weights"


def test_a_card_states_the_data_of_every_head(tmp_path):
    for name, videos in (("fold-1", 4), ("fold-2", 5)):
        make_head(tmp_path / "plain", EXPR)
        sizes = dict.fromkeys(("train", "validation"), SplitFacts(frames=90, groups=videos))
        data = replace(read_card(tmp_path / "plain").data, splits=sizes, synthetic=videos == 5)
        data = replace(data, labels_sha256=str(videos) * 64)
        chance = Chance(answer=f"always {videos}", majority=videos / 10)
        for seed in range(4, videos + 1):  # two heads of the second fold have one level
            folder = tmp_path / name / "weights" / f"{videos}-{seed}" / "last"
            make_head(folder, EXPR, seed=videos * seed, data=data, chance=chance)
    folds = tmp_path / "fold-1", tmp_path / "fold-2"
    (task,) = export(tmp_path, folds, "safetensors").record.tasks
    assert task.chance == Chance(answer="the best constant of each fold", majority=0.45)
    both = "90 frames of 4 videos or 90 frames of 5 videos"
    assert (task.trained_on, task.judged_on) == (both, both)
    assert task.synthetic


def test_a_head_without_a_score_has_no_chance_level_in_its_card(tmp_path):
    make_head(tmp_path / "imported", EXPR, validation=None)
    make_head(tmp_path / "trained", AU)
    folders = tmp_path / "imported", tmp_path / "trained"
    for runs, chances in ((folders[:1], 0), (folders, 1)):
        export(tmp_path, runs, "safetensors", out=tmp_path / str(chances))
        text = ModelCard.load(tmp_path / str(chances) / "README.md").text
        assert text.count("; chance ") == text.count("These are scores of single heads") == chances
        assert "EXPR: no score is known" in text


def of_clips(folder, encoder=IDENTITY):
    """A head that learnt from means of clips."""
    make_head(folder, EXPR, encoder=encoder)
    data = replace(read_card(folder).data, of_clips=True)
    make_head(folder, EXPR, encoder=encoder, data=data)


def test_a_card_states_whether_a_sample_is_a_frame_or_a_clip(tmp_path, runs):
    of_clips(tmp_path / "clips")
    mean = "The mean of a clip is that of its vectors, each divided by its norm"
    for run, samples in ((tmp_path / "clips", "means of clips"), (runs[0], "single frames")):
        out = tmp_path / samples
        export(tmp_path, (run,), "safetensors", out=out)
        text = (out / "README.md").read_text()
        assert f"EXPR from {samples}." in text
        assert (mean in text) == (samples == "means of clips")


@pytest.mark.cluster
def test_pictures_for_heads_that_learnt_from_clips_are_a_caveat(tmp_path, embedded):
    of_clips(tmp_path / "h", embedded)
    result = export(tmp_path, (tmp_path / "h",), "pt2", input="pixels", num_checked=2)
    assert "trained on means of clips, used here on single frames" in result.record.caveats


def test_a_head_that_diverged_is_a_caveat(tmp_path):
    make_head(tmp_path / "h", EXPR, status="diverged", id="a1")
    result = export(tmp_path, (tmp_path / "h",), "safetensors")
    assert result.record.caveats == ("head a1 diverged, and this is its last sound epoch",)


def test_a_folder_of_any_name_has_a_card_in_utf_8(tmp_path, runs):
    out = tmp_path / os.fsdecode(b"gesichter: \xff\n\xc3\xbc")
    result = export(tmp_path, runs, "safetensors", out=out, data_licence="für Forschung: 'ja' \"#1")
    text = (out / "README.md").read_text("utf-8")
    assert ModelCard(text).data.model_name == r"gesichter: \udcff\nü"
    assert "für Forschung: 'ja' \"#1" in text
    assert result.record.data_licence in text
