"""The model card: `README.md` in the Hub's format, with everything that a reader must know."""

from __future__ import annotations

from pathlib import Path

from raffect.bank.facts import DRAWN_CAVEAT
from raffect.export.records import ExportedTask, ExportRecord
from raffect.metrics.intervals import Headline
from raffect.metrics.task_kinds import kind_of
from raffect.runs.spread import chance_text, headline_text

_NUMPY = (Path(__file__).parent / "loader.py").read_text().partition('"""\n\n')[2]
_USE = {
    "model.safetensors": _NUMPY.replace("  # noqa: SIM118", "")
    + '\n\nprint(predict("model.safetensors", np.zeros(SHAPE, np.float32)))',
    "model.onnx": """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
names = [output.name for output in session.get_outputs()]
samples = np.zeros(SHAPE, np.DTYPE)
print(dict(zip(names, session.run(names, {"INPUT": samples}))))""",
    "model.pt2": """\
import torch

model = torch.export.load("model.pt2").module()
samples = torch.zeros(SHAPE, dtype=torch.DTYPE)
print(model(samples))""",
}
"""How each file is run; words in capitals stand for its input."""


def write_card(record: ExportRecord, name: str, licence: str) -> str:
    """The card's text.

    Args:
        record: Of the file.
        name: Of the model.
        licence: Of the heads, by the Hub's name.
    """
    sections = [
        f"---\n{_front_matter(record, name, licence)}\n---",
        f"# {name}",
        *(f"> **Caveat: {caveat}.** It applies to every score below." for caveat in record.caveats),
        _summary(record),
        "## Outputs\n" + "\n".join(map(_outputs, record.tasks)),
        "## Use\n```python\n" + _use(record) + "\n```\n" + _input(record),
        "## Decision rules\n" + "\n".join(map(_rules, record.tasks)),
        "## Scores\n" + "\n".join(map(_scores, record.tasks)) + "\n" + _scores_note(record),
        "## How the file was checked\n"
        + "\n".join(f"- {line.strip()}" for line in record.agreement.lines()),
        _licence(record, licence),
        "## Intended use\nResearch on facial affect, on faces like those of the training data. Not "
        "for decisions about people: a face does not show what somebody feels, and errors differ "
        "between groups of people.",
        _origin(record),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(record: ExportRecord, name: str, licence: str) -> str:
    """YAML that the Hub reads, with `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for task in record.tasks:
        kind, found = kind_of(task.task), _headline(task)
        if found is None:
            continue
        # A caveat that the name of the data states is stated once
        source = DRAWN_CAVEAT if task.synthetic else _dataset(task)
        where = dict.fromkeys([source, task.judged_on or "validation split", *record.caveats])
        results.append(
            EvalResult(
                task_type="image-classification",
                task_name=task.task.name.upper(),
                dataset_type=_dataset(task),
                dataset_name=", ".join(where),
                dataset_config=task.task.name,  # or the Hub's writer would join all tasks
                dataset_split="validation",
                metric_type="f1" if "F1" in kind.title else kind.key,
                metric_name=f"{kind.title}, {headline_text(found)}, mean of single heads",
                metric_value=round(found.score, 4),
            )
        )
    data = ModelCardData(
        license=licence,
        license_name="see-data-licence" if licence == "other" else None,
        library_name="raffect",
        tags=[
            "raffect",
            "facial-expression-recognition",
            "affective-computing",
            *(task.task.name for task in record.tasks),
            record.file.rpartition(".")[2],
        ],
        datasets=list(dict.fromkeys(map(_dataset, record.tasks))),
        model_name=name,
        eval_results=results or None,
    )
    return data.to_yaml()


def _dataset(task: ExportedTask) -> str:
    return "drawn-faces" if task.synthetic else (task.edition or "own-data")


def _headline(task: ExportedTask) -> Headline | None:
    """Mean score of the single heads, with the interval of the first where it is alone."""
    scores = [head.score for head in task.heads if head.score is not None]
    if not scores:
        return None
    only = task.heads[0].interval_95 if len(scores) == 1 else None
    return Headline(score=sum(scores) / len(scores), interval_95=only)


def _summary(record: ExportRecord) -> str:
    names = ", ".join(task.task.name.upper() for task in record.tasks)
    heads = sum(len(task.heads) for task in record.tasks)
    reads = "uint8 pictures of faces" if record.input == "pixels" else "features"
    return (
        f"`{record.file}`: {heads} head(s) for {names} on the frozen encoder "
        f"`{record.encoder.model}` ({record.encoder.weights}), exported by raffect. It reads "
        f"{reads}; everything below is in `export.json` and in the file's metadata too."
    )


def _outputs(task: ExportedTask) -> str:
    names = ", ".join(map(task.task.describe, task.task.outputs))
    lines = [f"- `{task.outputs[0]}`, float32, in this order: {names}."]
    if task.task.kind == "multiclass":
        lines.append(f"- `{task.outputs[1]}`, int64: number of the class decided on, from 0.")
    if task.task.kind == "multilabel":
        lines.append(f"- `{task.outputs[1]}`, int8: 1 for labels decided on, in the same order.")
    return "\n".join(lines)


def _use(record: ExportRecord) -> str:
    shape = (2, *record.shape[1:])
    dtype = "uint8" if record.input == "pixels" else "float32"
    text = _USE[record.file]
    for word, value in {"SHAPE": shape, "DTYPE": dtype, "INPUT": record.input}.items():
        text = text.replace(word, str(value))
    return text


def _input(record: ExportRecord) -> str:
    """What goes in."""
    shape = ", ".join(map(str, record.shape))
    if record.input == "features":
        return (
            f"\nInput `features`, float32, shape ({shape}): raw vectors of the encoder, not "
            f"normalised, of weights {record.encoder.weights_sha256[:12]}, from `raffect extract`."
            f"{_samples(record)}"
        )
    texts = ", ".join(f"{k} {v}" for k, v in record.encoder.preprocess.items())
    computed = record.encoder.precision
    stated = (
        f" The heads learnt from features computed in {computed}; the file computes in float32."
        if computed != "float32"
        else ""
    )
    return (
        f"\nInput `pixels`, uint8, RGB, shape ({shape}): crops of faces as the training data have "
        f"them, values 0 to 255. Resize and normalisation are in the file ({texts}), to exactly "
        f"PIL's pixels.{stated}"
    )


def _samples(record: ExportRecord) -> str:
    """What one sample is, where features go in."""
    learnt = "; ".join(f"{task.task.name.upper()} from {task.samples}" for task in record.tasks)
    text = f" Heads learnt {learnt}."
    if "means of clips" in learnt:
        text += " The mean of a clip is that of its vectors, each divided by its norm before."
    return text + " A missing frame is NaN." * (len(record.shape) == 3)


def _rules(task: ExportedTask) -> str:
    name, levels = task.task.name.upper(), task.thresholds or task.bias
    pairs = zip(task.task.outputs, levels, strict=bool(levels))
    levels = ", ".join(f"{output} {level:g}" for output, level in pairs)
    lines = [
        f"- {name}: mean over {len(task.heads)} head(s), shares "
        + ", ".join(f"{head.weight:.3g}" for head in task.heads)
    ]
    if task.task.kind == "multilabel":
        lines.append(f"  - a label is decided from these probabilities on: {levels}")
    if any(task.bias):
        lines.append(f"  - added to log probabilities before the largest is decided: {levels}")
    chosen = {
        "folds": "chosen on folds of the training split",
        "validation": "chosen on validation: optimistic there",
        "nothing": "these are the plain rules; `raffect postprocess` has chosen no others",
    }
    lines.append(f"  - {chosen[task.chosen_on]}")
    if any(task.windows):
        widths = ", ".join(
            f"{output} ± {width}"
            for output, width in zip(task.task.outputs, task.windows, strict=True)
        )
        lines.append(
            "  - **not in the file**, which sees one sample at a time: the mean of probabilities "
            f"over frames of a video before deciding ({widths})"
        )
    return "\n".join(lines)


def _scores(task: ExportedTask) -> str:
    name = task.task.name.upper()
    trained = f"trained on {task.trained_on}, " if task.trained_on else ""
    if _headline(task) is None:  # chance says nothing where no score stands beside it
        lines = [f"- {name}: {trained}no score is known"]
    else:
        lines = [
            f"- {name}, {kind_of(task.task).title}: {trained}judged on "
            f"{task.judged_on or 'the validation split'}; chance {chance_text(task.chance)}"
        ]
    for head in task.heads:
        score = "not known, it was imported"
        if head.score is not None:
            score = headline_text(Headline(score=head.score, interval_95=head.interval_95))
        lines.append(f"  - {head.id}, seed {head.seed}, epoch {head.snapshot}: {score}")
    return "\n".join(lines)


def _scores_note(record: ExportRecord) -> str:
    if not any(map(_headline, record.tasks)):
        return ""
    chosen = {head.snapshot for task in record.tasks for head in task.heads}
    best = (
        " The epoch `best` was chosen on the same frames: optimistic." if "best" in chosen else ""
    )
    return (
        "\nThese are scores of single heads as they were trained, in brackets 95 % intervals over "
        "videos or other groups; the mean of heads and the decision rules have other scores, which "
        f"`raffect evaluate` gives.{best}"
    )


def _licence(record: ExportRecord, licence: str) -> str:
    weights = record.weights_licence or "not stated; they are not in the file"
    return (
        f"## Licence\n- Heads: {licence}.\n- Data that the heads were trained on: "
        f"{record.data_licence}\n- Weights of the encoder: {weights}"
    )


def _origin(record: ExportRecord) -> str:
    data = {head.data_fingerprint for task in record.tasks for head in task.heads}
    heads = {head.sha256[:16] for task in record.tasks for head in task.heads}
    files = "\n".join(f"- {name}: SHA-256 {sha256}" for name, sha256 in record.sha256.items())
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    return (
        f"## Origin\n{files}\n- encoder: {record.encoder.weights_sha256}\n"
        f"- heads: {', '.join(sorted(heads))}\n- data: {', '.join(sorted(data))}\n"
        f"- raffect commit {record.git_commit}; {versions}"
    )
