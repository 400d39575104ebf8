"""`raffect captions`: a label table whose targets are vectors of captions, or of a teacher.

Captions come from a table of the user, or are made from labels; texts become vectors by the weights
that made the bank. Training reads the vectors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.facts import join_caveats
from raffect.bank.format import Bank, Identity
from raffect.config import CaptionsConfig
from raffect.datasets.labels import CLIP_COLUMNS, is_of_clips, read_label_task, read_labels
from raffect.datasets.targets import CAPTIONS_OF, TargetFacts, contrastive_task, write_targets
from raffect.encoders.text import open_text_encoder
from raffect.errors import require
from raffect.language.captions.captioned import Captioned
from raffect.language.captions.in_bank import BankFrames, find_frames
from raffect.language.captions.labels import (
    caption_classes,
    caption_units,
    cut_runs,
    cut_stretches,
    read_labelled,
)
from raffect.language.captions.result import CaptionFacts, CaptionsResult
from raffect.language.captions.splits import require_both_splits, splits_from
from raffect.language.captions.table import is_of_drawn_faces, is_prepared, read_captions
from raffect.language.captions.teacher import read_teacher
from raffect.language.captions.vectors import TargetVectors, encode_captions, encode_classes
from raffect.language.leaks import find_tables, guard, is_split
from raffect.language.prompt_sets import TaskPhrases, phrases_for, require_templates
from raffect.progress import stage
from raffect.storage.atomic import require_writable
from raffect.storage.tables import read_metadata

_KEYS = ("video", "frame", "start", "end", "split", "group", "target", "class")
"""Columns of the label table."""


@dataclass(frozen=True)
class _Source:
    """Where captions come from.

    Attributes:
        rows: Rows with captions, or for a teacher without.
        facts: What is known of them so far.
        labels: The label table that rows or splits are from; None without.
        phrases: Those of classes; None for all else.
        has_splits: Whether rows have splits of their own, and not those of ``labels``.
        is_drawn: Whether the table of captions says that its faces are drawn.
        own: Name of a table of captions that no data set has; empty for all else.
    """

    rows: Captioned
    facts: CaptionFacts
    labels: pa.Table | None = None
    phrases: TaskPhrases | None = None
    has_splits: bool = False
    is_drawn: bool = False
    own: str = ""


def captions(config: CaptionsConfig) -> CaptionsResult:
    """Write a label table of captions and its vectors.

    Raises:
        RaffectError: If the source is not what it should be, no row is left, captions are too
            long, or the weights are not those of the bank.
    """
    _require_own(config.out)
    # Rows with their captions
    bank = Bank(config.bank).require()
    identity = bank.require_identity()
    with stage(f"reading the plan of {config.bank}"):
        frames = find_frames(bank)
    with stage("making rows"):
        source = _deal(config, _read_source(config, frames), frames)
    require_writable(config.out.parent)

    # Their vectors, then both files
    rows, found = _find_vectors(config, source, identity)
    table = _finish(rows.table)
    facts = replace(source.facts, truncated=found.truncated, left_out=rows.left_out)
    classes = rows.texts if facts.source == "classes" else ()
    with stage(f"writing {config.out}"):
        written = _write(config.out, table, classes, found, facts, source)
    return CaptionsResult(
        out=config.out,
        targets=config.out.parent / written.file,
        table=table,
        captions=found.captions,
        splits=_count_splits(table),
        num_targets=written.count,
        dim=written.dim,
        waiting=int((frames.count(table)[1] > 0).sum()),
        facts=facts,
        unknown=found.unknown,
        caveat=join_caveats(identity.caveat, source.is_drawn, source.own),
        bank=config.bank,
    )


def _require_own(out: Path) -> None:
    """Refuse to replace a table that this command has not written, such as its own source."""
    if out.exists():
        require(
            "captions" in read_metadata(read_labels(out)),
            f"--out {out}: a table of labels is there, which captions would replace; name another",
        )


def _read_source(config: CaptionsConfig, frames: BankFrames) -> _Source:
    """Rows of the source that was asked for."""
    if config.from_labels is not None:
        return _read_labels(config, config.from_labels)
    file = config.labels
    labels = None if file is None else read_labels(file)
    if config.table is not None:
        rows = read_captions(config.table, config.encoding, frames)
        has_splits = "split" in rows.table.column_names
        if labels is not None and file is not None:
            rows = splits_from(rows, labels, file)
        facts = CaptionFacts(source="table", file=config.table.name, seed=config.seed)
        is_drawn = is_of_drawn_faces(config.table) or _is_drawn(labels)
        own = "" if is_prepared(config.table) else config.table.name
        return _Source(rows, facts, labels, has_splits=has_splits, is_drawn=is_drawn, own=own)
    assert config.teacher is not None  # CaptionsConfig has checked both
    assert labels is not None
    own = CLIP_COLUMNS if is_of_clips(labels) else ("frame",)
    names = [name for name in ("video", *own, "split", "group") if name in labels.column_names]
    facts = CaptionFacts(source="teacher", file=config.teacher.name, seed=config.seed)
    rows = Captioned(labels.select(names), f"--labels {file}")
    return _Source(rows, facts, labels, is_drawn=_is_drawn(labels))


def _read_labels(config: CaptionsConfig, file: Path) -> _Source:
    """Rows of a label table, with captions made from its labels."""
    labels, where = read_labels(file), f"--from-labels {file}"
    task = read_label_task(labels, file, file.stem)
    is_classes = task.kind == "multiclass"
    require(
        is_classes or task.kind == "multilabel",
        f"{where}: task {task.name} is {task.kind}; captions are made of classes or of labels "
        "such as action units",
    )
    require(
        not is_classes or len(config.prompts) == 1,
        f"--prompts {' '.join(config.prompts)}: a class has the mean vector of one prompt set",
    )
    require_templates(config.templates)
    sets = [phrases_for(name, task, config.templates) for name in dict.fromkeys(config.prompts)]

    # Rows, or clips of them
    rows = read_labelled(labels, task, where)
    if config.clips != "rows":
        require(
            not is_of_clips(labels),
            f"--clips {config.clips}: {file} is a table of clips already; leave it out",
        )
        is_run = config.clips == "runs"
        rows = cut_runs(rows) if is_run else cut_stretches(rows, config.clip_frames)

    # Their captions
    facts = CaptionFacts(
        source="classes" if is_classes else "labels",
        file=file.name,
        prompts=tuple(found.name for found in sets),
        templates=tuple(dict.fromkeys(text for found in sets for text in found.templates)),
        clips=config.clips,
        clip_frames=config.clip_frames if config.clips == "stretches" else 0,
        seed=config.seed,
    )
    if not is_classes:
        rows, phrases = caption_units(rows, sets, config.seed), None
    else:
        rows, phrases = caption_classes(rows, task, sets[0].fill().described), sets[0]
    return _Source(rows, facts, labels, phrases, is_drawn=_is_drawn(labels))


def _is_drawn(labels: pa.Table | None) -> bool:
    """Whether a label table says that its faces are drawn."""
    return labels is not None and read_metadata(labels).get("synthetic") == "true"


def _deal(config: CaptionsConfig, source: _Source, frames: BankFrames) -> _Source:
    """Rows that the bank has, each in a split, and none to train on of videos that are judged."""
    lacks = np.stack(frames.count(source.rows.table)).sum(0) == 0
    rows = source.rows.without(lacks, "frames that the bank does not have")
    rows, dealt = require_both_splits(rows, config.validation_share, config.seed)
    rows, guarded = guard(rows, _tables_to_guard(config, source))
    return replace(source, rows=rows, facts=replace(source.facts, split=dealt, guard=guarded))


def _tables_to_guard(config: CaptionsConfig, source: _Source) -> list[Path]:
    """Tables whose validation and test videos are not trained on."""
    words = config.not_in or ("none" if source.facts.source == "classes" else "others",)
    file, own = config.from_labels or config.labels, [config.out.name]
    if file is not None and not source.has_splits:
        own.append(file.name)
    return find_tables(words, None if file is None else file.parent, own)


def _find_vectors(
    config: CaptionsConfig, source: _Source, identity: Identity
) -> tuple[Captioned, TargetVectors]:
    """The vector of each target, in an order that mixes videos, and rows with their numbers."""
    if config.teacher is not None:
        with stage(f"reading {config.teacher}"):
            rows, vectors = read_teacher(config.teacher, source.rows)
        found = TargetVectors(vectors)
    else:
        rows, found = _encode(config, source, identity)
    return _shuffle(rows, found, config.seed)


def _encode(
    config: CaptionsConfig, source: _Source, identity: Identity
) -> tuple[Captioned, TargetVectors]:
    """Vectors of the captions that rows use, and the rows with numbers of these."""
    rows = source.rows
    encoder = open_text_encoder(identity, config.bank, config.weights)
    used, number = np.unique(rows.table["target"].to_numpy(), return_inverse=True)
    texts = [rows.texts[k] for k in used]
    if source.phrases is not None:
        found = encode_classes(encoder, source.phrases, texts)
    else:
        found = encode_captions(encoder, texts, config.truncate)
    return _with_targets(rows, number.ravel()), found


def _shuffle(rows: Captioned, found: TargetVectors, seed: int) -> tuple[Captioned, TargetVectors]:
    """Targets in a random order: heads are judged on blocks of them, and each mixes videos."""
    order = np.random.default_rng(seed).permutation(len(found.values))
    new = np.empty_like(order)
    new[order] = np.arange(len(order))
    return _with_targets(rows, new[rows.table["target"].to_numpy()]), found.take(order)


def _with_targets(rows: Captioned, number: np.ndarray) -> Captioned:
    table = rows.table
    column = table.column_names.index("target")
    return replace(rows, table=table.set_column(column, "target", pa.array(number)))


def _write(
    out: Path,
    table: pa.Table,
    classes: Sequence[str],
    found: TargetVectors,
    facts: CaptionFacts,
    source: _Source,
) -> TargetFacts:
    """Both files."""
    about = {"captions": facts.to_bytes().decode()}
    has_group = source.labels is not None and "group" in source.labels.column_names
    if "group" in table.column_names and not has_group:
        about["groups"] = "groups"
    if source.is_drawn:
        about["synthetic"] = "true"
    if source.own:
        about[CAPTIONS_OF] = source.own
    return write_targets(
        out,
        table,
        contrastive_task(out.stem, classes),
        found.values,
        captions=found.captions,
        image_sha256=found.image_sha256,
        source=source.labels,
        about=about,
    )


def _finish(table: pa.Table) -> pa.Table:
    """The label table: its columns and types, in the order of videos and frames."""
    names = [name for name in _KEYS if name in table.column_names]
    texts = [name for name in ("video", "split", "group") if name in names]
    kinds = {name: pa.string() if name in texts else pa.int32() for name in names}
    table = pa.table({name: table[name].cast(kind) for name, kind in kinds.items()})
    ends = [name for name in ("start", "end", "frame") if name in names]
    table = table.sort_by([(name, "ascending") for name in ("video", *ends)])
    for name in texts:
        table = table.set_column(names.index(name), name, table[name].dictionary_encode())
    return table.combine_chunks()


def _count_splits(table: pa.Table) -> dict[str, tuple[int, int]]:
    """Rows and videos of each split."""
    found = {}
    for name in ("train", "validation", "test"):
        videos = table["video"].filter(pa.array(is_split(table, name)))
        if len(videos):
            found[name] = (len(videos), len(videos.unique()))
    return found
