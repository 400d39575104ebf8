"""Clips: the mean of the normalised features between two frames, wherever they lie in the bank."""

import numpy as np
import pyarrow as pa
import pytest

from raffect.bank.clips import ClipIndex
from raffect.config import TrainConfig
from raffect.datasets.labels import write_clip_labels
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads.checkpoint import read_card
from raffect.recipe import HeadConfig
from raffect.runs.data import open_dataset
from raffect.runs.read_samples import read_rows
from raffect.training.stream import decide_stream
from raffect.training.train import train
from tests.helpers.banks import fill_bank, make_manifest

TASK = Task(name="mood", kind="multiclass", outputs=("low", "high"), columns=("mood",))
COUNTS = {"a": 20, "b": 30, "c": 9}


def row(video, start, end, mood=0, split="validation"):
    return {"video": video, "start": start, "end": end, "mood": mood, "split": split}


@pytest.fixture
def bank(tmp_path):
    """Shards of 16 rows; frame 3 of video a could not be read."""
    manifest = make_manifest(COUNTS)
    return fill_bank(tmp_path / "bank", manifest, rejects={0: {2: "broken"}})


def write(tmp_path, rows):
    path = tmp_path / "clips.parquet"
    write_clip_labels(path, pa.Table.from_pylist(rows), TASK)
    return path


def find(bank, path, split="validation"):
    return open_dataset(bank.path, path, "mood", [split]).splits[split]


def mean_of(video, frames):
    """From the features that `fill_bank` writes: k, k + 0.25 ... of row k of the plan."""
    first = sum(COUNTS[name] for name in sorted(COUNTS) if name < video)
    x = (first + np.array(frames)[:, None] - 1 + np.arange(6) / 4).astype(np.float16).astype(float)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0)


def test_a_clips_feature_is_the_mean_of_its_normalised_frames(bank, tmp_path):
    rows = [row("b", 5, 29), row("a", 2, 4), row("a", 1, 20, 1), row("b", 7, 7), row("c", 8, 400)]
    index = find(bank, write(tmp_path, rows))
    expected = [
        mean_of("b", range(5, 30)),
        mean_of("a", [2, 4]),
        mean_of("a", [k for k in range(1, 21) if k != 3]),
        mean_of("b", [7]),
        mean_of("c", [8, 9]),
    ]
    assert isinstance(index, ClipIndex)
    np.testing.assert_allclose(index.read(), np.array(expected), atol=1e-3)
    assert index.y[:, 0].tolist() == [0, 0, 1, 0, 0]
    assert [index.videos[k] for k in index.video] == ["b", "a", "a", "b", "c"]
    assert index.frame.tolist() == [5, 2, 1, 7, 8]


def test_some_clips_alone_have_the_features_that_they_have_among_others(bank, tmp_path):
    rows = [row("b", 5, 29), row("a", 2, 4), row("a", 1, 20), row("c", 1, 3)]
    index = find(bank, write(tmp_path, rows))
    keep = np.array([True, False, True, False])
    part = index.select(keep)
    assert (part.read() == index.read()[keep]).all()
    assert (part.videos, part.groups, len(part)) == (["a", "b"], ["a", "b"], 2)


def test_clips_without_a_feature_are_counted_by_reason(bank, tmp_path):
    rows = [row("a", 3, 3), row("a", 21, 30), row("zz", 1, 5), row("a", 4, 5)]
    index = find(bank, write(tmp_path, rows))
    assert (len(index), index.missing.rejected, index.missing.no_image) == (1, 1, 2)
    with pytest.raises(RaffectError, match="no clip of mood validation has both"):
        find(bank, write(tmp_path, rows[:3]))


def test_a_clip_that_is_not_extracted_whole_makes_the_bank_incomplete(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest(COUNTS))
    next((bank.path / "commits").glob("*000001*")).unlink()
    path = write(tmp_path, [row("a", 15, 20), row("a", 1, 4)])
    with pytest.raises(RaffectError, match="1 of 2 validation frames are planned and not there"):
        find(bank, path)


def test_a_group_column_keeps_clips_together(bank, tmp_path):
    rows = [row("a", 1, 2) | {"group": "s"}, row("b", 1, 2) | {"group": "s"}]
    assert find(bank, write(tmp_path, rows)).groups == ["s"]


def test_what_frames_were_drawn_stays_so_for_clips_made_of_them(bank, tmp_path):
    source = pa.table({"video": ["a"]}).replace_schema_metadata({"synthetic": "true", "x": "y"})
    path = tmp_path / "clips.parquet"
    write_clip_labels(path, pa.Table.from_pylist([row("a", 1, 2)]), TASK, source)
    assert open_dataset(bank.path, path, "", ["validation"]).facts.caveat == "drawn faces"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([row("a", 5, 4)], "the clip of row 0 ends before it starts"),
        ([row("a", 0, 4)], "expected 1 or more"),
        ([{"video": "a", "start": 1, "end": 2, "split": "train"}], "expected one column 'mood'"),
        ([row("a", 1, 4), row("b", 1, 2), row("a", 1, 4)], "twice, first a 1-4"),
    ],
)
def test_faulty_clips_are_refused_in_one_line(bank, tmp_path, rows, line):
    with pytest.raises(RaffectError, match=line):
        find(bank, write(tmp_path, rows))


def test_windows_longer_than_any_clip_are_refused_before_anything_is_written(bank, tmp_path):
    rows = [row("b", k, k + 3 + k % 2, k % 2, "train") for k in range(1, 24)] + [row("a", 1, 20, 1)]
    config = TrainConfig(
        bank=bank.path,
        labels=write(tmp_path, rows),
        out=tmp_path / "run",
        batch_size=4,
        device="cpu",
        head=HeadConfig(kind="temporal", attention_heads=1, window=6),
    )
    # A video is longer, and so is a clip of the validation split
    line = (
        r"head\.window 6: the longest clip of the training split has 5 frames; expected at most 5"
    )
    with pytest.raises(RaffectError, match=line):
        train(config)
    assert not (tmp_path / "run").exists()


def test_heads_are_trained_on_clips_and_never_streamed(bank, tmp_path):
    rows = [row("b", k, k + 3, k % 2, "train") for k in range(1, 24)] + [row("a", 1, 20, 1)]
    path = write(tmp_path, rows)
    config = TrainConfig(
        bank=bank.path, labels=path, out=tmp_path / "run", epochs=1, batch_size=4, device="cpu"
    )
    run = train(config)
    card = read_card(run.folder / "weights" / run.records[0].id / "last")
    assert card.data.splits["train"].frames == 23
    index = find(bank, path, "train")
    assert len(read_rows(index, TASK, "cpu")) == 23
    assert decide_stream("auto", index, "cpu") == "never"
    with pytest.raises(RaffectError, match="--stream always: labels of clips"):
        decide_stream("always", index, "cpu")
