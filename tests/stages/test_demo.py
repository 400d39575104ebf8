"""The demo's judge, and the whole demo once, small."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from raffect.cli import main
from raffect.data.features import Features
from raffect.stages.demo import bootstrap_videos, macro_f1


def make_features(seed=0, videos=12, length=40):
    rng = np.random.default_rng(seed)
    video = np.repeat(np.arange(videos), length).astype(np.int32)
    y = rng.integers(0, 8, len(video))
    return Features(np.zeros((len(video), 1), np.float16), y[:, None].astype(np.int8), video, np.arange(len(video), dtype=np.int32), [f"v{k}" for k in range(videos)], 0)


def test_an_absent_class_scores_zero_and_is_not_dropped():
    truth = np.array([0, 1, 2, 2])
    assert macro_f1(truth, truth) == pytest.approx(3 / 8)


def test_the_bootstrap_draws_videos_not_frames():
    features = make_features()
    rng = np.random.default_rng(1)
    bad = rng.random(12) < 0.5
    guess = np.where(bad[features.video], (features.y[:, 0] + 1) % 8, features.y[:, 0])  # whole videos right or wrong
    low, high = bootstrap_videos(features, guess, 0)
    by_hand = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(features.video == k) for k in rng.integers(0, 12, 12)])
        by_hand.append(f1_score(features.y[rows, 0], guess[rows], average="macro"))
    assert (low, high) == pytest.approx(np.quantile(by_hand, (0.025, 0.975)), abs=0.09)  # one video of twelve
    assert high - low > 0.3


def test_the_bootstrap_follows_its_seed():
    features = make_features()
    guess = np.roll(features.y[:, 0], 1)
    assert bootstrap_videos(features, guess, 3) == bootstrap_videos(features, guess, 3)


def test_the_demo_shows_that_features_carry_the_signal(tmp_path, local_ray, capsys):
    words = ["demo", "--out", str(tmp_path / "demo"), "--frames", "1200"]
    assert main(words) == 0
    out = capsys.readouterr().out
    score = json.loads((tmp_path / "demo" / "score.json").read_text())["score"]
    assert score["macro_f1"] > 0.45 > 3 * score["trivial"]["macro_f1"]
    assert score["interval_95"][0] > score["trivial"]["macro_f1"]
    assert "stamp: embedded encoder, drawn faces" in out
    assert "sound and complete" in out
    assert str(tmp_path / "demo" / "bank") in out
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "demo" / "score.json").read_text())["score"] == score
