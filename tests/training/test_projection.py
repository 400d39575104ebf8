"""A projection as a user trains it against a teacher, as Exp-CLIP does."""

import numpy as np
import pytest
import torch

from raffect.cli import main
from raffect.datasets.labels import read_labels
from raffect.datasets.targets import contrastive_task, write_targets
from raffect.heads.checkpoint import load_head
from raffect.heads.projection import ProjectionSpec
from tests.helpers.learning import DIM, make_data, scores_of

TEACHER, LENGTH = contrastive_task("teacher"), 40


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A bank, and a teacher whose vectors are a linear map of its features, with noise."""
    folder, features, rng = tmp_path_factory.mktemp("taught"), [], np.random.default_rng(1)
    make_data(folder, change=lambda x, expr, au: features.append(x.astype(np.float64)))
    own = rng.normal(size=(LENGTH, DIM)) / DIM**0.5
    vectors = features[0] @ own.T
    vectors += 0.2 * vectors.std() * rng.normal(size=vectors.shape)
    # A label table of every frame without any class.
    labels = read_labels(folder / "labels" / "expr.parquet")
    number = np.arange(len(labels), dtype=np.int32)
    rows = labels.select(["video", "frame", "split"]).append_column("target", [number])
    (folder / "teacher").mkdir()
    path = folder / "teacher" / "teacher.parquet"
    write_targets(path, rows, TEACHER, vectors, source=labels)
    return folder, own, features[0]


def test_a_teacher_that_is_a_linear_map_is_learnt_and_maps_texts_as_well(taught, tmp_path):
    folder, own, features = taught
    bank = ["--bank", str(folder / "bank"), "--labels", str(folder / "teacher")]
    small = ["--batch-size", "64", "--epochs", "30", "--device", "cpu"]
    assert main(["train", "expclip", *bank, "--out", str(tmp_path / "run"), *small]) == 0
    scores = scores_of(tmp_path / "run")
    (name, about), chance = *scores["heads"].items(), scores["chance"]["majority"]
    score = about["scores"]["last"]
    print(f"recall@1 {score['headline']:.3f} {score['interval_95']}, chance {chance:.3f}")
    # The vector of its own frame comes first among those of all 480 frames.
    assert chance < 0.01
    assert score["interval_95"][0] > 0.5
    # What it has learnt is the teacher's map, so that texts of the same space are mapped as well.
    head, card = load_head(tmp_path / "run" / "weights" / name / "last")
    assert head.spec == ProjectionSpec(DIM, LENGTH)
    texts = torch.from_numpy(features[:50]).float()
    found = head.spec.embed_texts(head.state_dict(), texts).double()
    expected = torch.nn.functional.normalize(texts.double() @ torch.from_numpy(own).mT, dim=-1)
    cosines = found @ expected.mT
    assert (cosines.argmax(1) == torch.arange(50)).double().mean() > 0.9
    assert cosines.diagonal().mean() > 0.5 > 3 * cosines.mean()
    assert card.task == TEACHER
