"""`raffect predict INPUT...`: from pictures and videos to a table, overlays and pages.

    inputs ─ faces ─ crops ─ extract ─ bank ─ heads ─ table ─┬─ predictions.parquet, csv/
                                                             └─ overlay/, pages/, index.html

Faces, features and heads are those of `raffect faces`, `extract` and `predict --bank`, in a scratch
folder; each of them goes on where it was after a stop.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raffect.bank.records import Identity
from raffect.bank.running import note_of_run
from raffect.config import (
    EMBEDDED_MODEL,
    ExtractConfig,
    FacesConfig,
    PredictConfig,
)
from raffect.datasets.problems import problem_lines
from raffect.encoders.weights import EMBEDDED_CAVEAT
from raffect.errors import RaffectError, require
from raffect.evaluation.ensemble import Ensemble, load_ensembles
from raffect.evaluation.predict import PredictResult, open_frames, write_table_of
from raffect.evaluation.predict import predict as predict_bank
from raffect.extraction.as_identity import extract_as, require_loadable
from raffect.extraction.find_faces import FacesResult, find_faces, require_usable
from raffect.faces.inputs import list_inputs, read_inputs
from raffect.leaving import last_act
from raffect.pipelines.join_faces import join_rows, split_inputs, whole_inputs
from raffect.pipelines.scratch import delete_scratch, open_scratch, state_of
from raffect.pipelines.show_inputs import Seen, Showing, Shown, show_inputs
from raffect.predictions.styles import require_style
from raffect.predictions.table import PredictionFacts, read_predictions, write_predictions
from raffect.progress import Progress
from raffect.provenance import describe_run
from raffect.ray_session.session import ray_session
from raffect.reporting.index import write_index
from raffect.reporting.truth import Truth, label_files
from raffect.runs.data import pick_device
from raffect.runs.pick import PickedHead, pick_heads
from raffect.storage.atomic import require_writable

_NO_REJECTS_ARE_TOO_MANY = 1.0


@dataclass(frozen=True, kw_only=True)
class PredictFilesResult:
    """What was predicted for pictures and videos.

    Attributes:
        out: Folder of the results; None if they are in memory alone.
        facts: Where the predictions come from.
        inputs: Number of inputs.
        statuses: Rows by status; see `raffect.predictions.columns.Status`.
        problems: Inputs with a problem, and what it is.
        notes: Which heads, detector and decision rules were used, what was deleted, and what was
            left out of folders.
        table: All rows, where there is no folder.
    """

    out: Path | None
    facts: PredictionFacts
    inputs: int
    statuses: Mapping[str, int]
    problems: Mapping[str, str]
    notes: tuple[str, ...]
    table: pa.Table | None = None

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame, a row for each face of each frame."""
        if self.table is not None:
            return self.table.to_pandas()
        assert self.out is not None
        return read_predictions(self.out / "predictions.parquet").to_pandas()

    def lines(self) -> list[str]:
        """The result as lines of text."""
        counts = ", ".join(f"{count:,} {status}" for status, count in self.statuses.items())
        lines = [*self.notes, f"{self.facts.model}: {self.inputs:,} input(s), rows: {counts}"]
        lines += [f"problem: {name}: {what}" for name, what in list(self.problems.items())[:10]]
        if len(self.problems) > 10:
            lines.append(f"... and {len(self.problems) - 10:,} more, all in index.html")
        lines += [f"caveat: {caveat}" for caveat in self.facts.caveats]
        what = "predictions.parquet, and a CSV file an input in csv/"
        return [*lines, f"wrote {self.out}/index.html (open it in a browser), {what}"]


def predict(
    what: PredictConfig | str | Path | Sequence[str | Path], **settings: Any
) -> PredictResult | PredictFilesResult:
    """Predict a bank, or pictures and videos.

    Args:
        what: A configuration, or an input or several: ``predict("clip.mp4", head="runs/expr")``.
        **settings: Of `PredictConfig`, where ``what`` is inputs. ``head`` may be one path. Without
            ``out`` nothing is left on the disk, unless the process is killed, and the result holds
            the table alone.

    Raises:
        RaffectError: If an input, head or package is missing, the encoder not for photographs, or
            a cluster is to be used without ``out``.
    """
    if isinstance(what, PredictConfig):
        return predict_bank(what) if what.bank is not None else predict_files(what)
    inputs = (what,) if isinstance(what, str | Path) else tuple(what)
    head = settings.pop("head", ())
    heads = (head,) if isinstance(head, str | Path) else tuple(head)
    out = settings.pop("out", None)
    paths: dict[str, Any] = {"inputs": tuple(map(Path, inputs)), "head": tuple(map(Path, heads))}
    for name in {"boxes", "detector_model", "labels"} & settings.keys():
        given = settings.pop(name)
        paths[name] = None if given is None else Path(given)
    if out is not None:
        return predict_files(PredictConfig(**paths, out=Path(out), **settings))
    # A temporary folder is of this machine alone
    what_else = "expected out beside it, a folder that all machines see under the same path"
    require(not settings.get("address"), f"address: {what_else}")
    with _temporary_folder() as folder:
        settings = {"overlay": False, **settings}
        result = predict_files(PredictConfig(**paths, out=folder, **settings))
        table = read_predictions(folder / "predictions.parquet")
    return replace(result, out=None, table=table)


@contextlib.contextmanager
def _temporary_folder() -> Generator[Path]:
    """A folder that is deleted at the end, also where the process leaves because Ray has died."""
    with (
        tempfile.TemporaryDirectory(prefix="raffect-") as folder,
        last_act(lambda _: shutil.rmtree(folder, ignore_errors=True), "after"),
    ):
        yield Path(folder)


def predict_files(config: PredictConfig) -> PredictFilesResult:
    """Predict pictures and videos into the folder ``config.out``.

    Raises:
        RaffectError: If an input, head or package is missing, or the encoder not for photographs.
    """
    # Everything that can be checked is checked before a face is looked for
    heads, notes = pick_heads(config.head, config.epoch)
    identity = _choose_encoder(config, heads)
    ensembles, chosen = load_ensembles(heads, pick_device(config.device), config.postprocess)
    tasks = [one.rules.task for one in ensembles]
    require_style(config.style, tasks)
    truth = Truth(config.labels, tasks) if config.labels else None
    out = config.out.absolute()
    listing = list_inputs(config.inputs, out)
    files = listing.files
    left_out = listing.ignored.lines("inputs")
    left_out += [f"problem: {line.strip()}" for line in problem_lines(listing.problems)]
    require_usable(_faces_config(config, files, out), files)
    require_writable(out)
    deciding = _deciding(config, heads, ensembles)
    scratch, deleted = open_scratch(out, files, deciding, config.keep)

    # Faces, features, predictions
    with note_of_run(scratch), ray_session(config.address):
        faces = find_faces(_faces_config(config, files, scratch / "faces"))
        facts = _predict_crops(config, identity, faces, (heads, ensembles), scratch)
        if facts is None:
            facts = _facts_without_a_crop(ensembles)
        facts = replace(facts, bank="", run=describe_run())
        predicted = scratch / "predictions.parquet"
        statuses = _write_table(out / "predictions.parquet", faces, predicted, facts)

        # What there is to look at
        showing = Showing(
            out=out,
            records=scratch / "shown",
            facts=facts,
            style=config.style,
            overlay=config.overlay,
            truth=truth,
        )
        shown = _show_all(showing, faces, scratch / "faces")
    detector = f"faces found by {faces.detector} ({faces.reason})"
    about = f"model {facts.model}; {detector}"
    write_index([one.entry() for one in shown], facts, about, out / "index.html")
    kept = []
    if config.keep:
        kept = [f"kept {scratch}: crops of faces and their features"]
    else:
        delete_scratch(scratch)
    return PredictFilesResult(
        out=out,
        facts=facts,
        inputs=len(shown),
        statuses=statuses,
        problems={one.title: one.problem for one in shown if one.problem},
        notes=(*deleted, *left_out, *notes, *chosen, detector, *kept),
    )


def _choose_encoder(config: PredictConfig, heads: Sequence[PickedHead]) -> Identity:
    """What the features are that the heads were trained on: of one encoder, or joined of several.

    Raises:
        RaffectError: If they are of different features, of some that cannot be computed, or of the
            embedded encoder, which is not for photographs.
    """
    first = heads[0]
    (identity,) = first.card.data.encoders
    for head in heads:
        require(
            not identity.differences(head.card.data.encoders[0]),
            f"--head: {first.folder} and {head.folder} are of different encoders or views; predict "
            "each alone",
        )
    require_loadable(identity, config.weights, first.folder)
    weights = [
        config.weights or encoder.weights
        for encoder in identity.encoders
        if encoder.model == EMBEDDED_MODEL
    ]
    if any(not name.startswith("random") for name in weights):
        require(
            config.allow_embedded,
            f"{first.folder}: a head of the embedded encoder, which has never seen a photograph; "
            "train on a bank of a real encoder (`raffect models list`), or pass --allow-embedded "
            f"to try it all the same (results are labelled {EMBEDDED_CAVEAT!r})",
        )
    return identity


def _deciding(
    config: PredictConfig, heads: Sequence[PickedHead], ensembles: Sequence[Ensemble]
) -> list[Any]:
    """What decides the results, beside the inputs."""
    names = ("weights", "style", "overlay", "detector", "every", "margin", "device")
    settings = [getattr(config, name) for name in names]
    rules = [one.rules.to_bytes().decode() for one in ensembles]
    states = [state_of(file) for file in _files_beside(config)]
    return [[head.card.sha256 for head in heads], settings, rules, states]


def _files_beside(config: PredictConfig) -> list[Path]:
    """Files with boxes, a detector and labels."""
    files = [config.detector_model] if config.detector_model else []
    if (boxes := config.boxes) is not None:
        files += sorted(boxes.glob("*.csv")) if boxes.is_dir() else [boxes]
    return files + (label_files(config.labels) if config.labels else [])


def _faces_config(config: PredictConfig, files: Sequence[Path], out: Path) -> FacesConfig:
    return FacesConfig(
        inputs=tuple(files),
        out=out,
        detector=config.detector,
        boxes=config.boxes,
        detector_model=config.detector_model,
        every=config.every,
        margin=config.margin,
        address=config.address,
    )


def _predict_crops(
    config: PredictConfig,
    identity: Identity,
    faces: FacesResult,
    loaded: tuple[Sequence[PickedHead], Sequence[Ensemble]],
    scratch: Path,
) -> PredictionFacts | None:
    """Extract the crops and predict them into the scratch folder; None if there is no crop."""
    if faces.manifest is None:
        return None
    bank = scratch / "bank"
    extract_config = ExtractConfig(
        manifest=faces.manifest,
        bank=bank,
        address=config.address,
        device=config.device,
        allow_embedded=True,  # `_choose_encoder` has asked
        max_reject_share=_NO_REJECTS_ARE_TOO_MANY,
    )
    extract_as(identity, extract_config, config.weights)
    heads, ensembles = loaded
    frames = open_frames(bank, heads, config.allow_incomplete)
    return write_table_of(frames, ensembles, scratch / "predictions.parquet").facts


def _facts_without_a_crop(ensembles: Sequence[Ensemble]) -> PredictionFacts:
    """Where a table without any prediction comes from, with the caveats of its heads."""
    heads = [head for one in ensembles for head in one.heads]
    caveats = [caveat for head in heads for caveat in head.card.data.trained_caveats]
    return PredictionFacts(
        rules=tuple(one.rules for one in ensembles),
        bank="",
        bank_digest="",
        caveats=tuple(dict.fromkeys(caveats)),
        run=describe_run(),
    )


def _write_table(
    out: Path, faces: FacesResult, predicted: Path, facts: PredictionFacts
) -> dict[str, int]:
    """Write the table of all inputs; its rows by status."""
    statuses: Counter[str] = Counter()
    source = predicted if faces.manifest is not None else None
    with write_predictions(out, facts) as writer:
        for part in join_rows(faces.faces, source, facts.tasks, facts.model):
            writer.write(part)
            statuses.update(part["status"].to_pylist())
    return dict(statuses.most_common())


def _show_all(showing: Showing, faces: FacesResult, folder: Path) -> list[Shown]:
    """Show every input; in the order of the inputs."""
    problems = {fact.name: fact.problem for fact in faces.inputs}
    seen = {
        one.shown: Seen(
            name=one.name, path=one.path, kind=one.kind, problem=problems.get(one.name, "")
        )
        for one in read_inputs(folder)
    }
    found = {}
    with Progress("looks", len(seen), "inputs") as progress:
        progress.begin_stage("drawing overlays and pages")
        for name, shown in show_inputs(showing, _rows_of(showing, seen)):
            found[name] = shown
            progress.advance(1)
    return [found[one.name] for one in seen.values() if one.name in found]


def _rows_of(showing: Showing, seen: Mapping[str, Seen]) -> Iterator[tuple[Seen, pa.Table]]:
    with pq.ParquetFile(showing.out / "predictions.parquet") as file:
        for part in whole_inputs(file.iter_batches()):
            for name, rows in split_inputs(part):
                if name not in seen:
                    raise RaffectError(f"{name}: in the table of faces and not among the inputs")
                yield seen[name], rows
