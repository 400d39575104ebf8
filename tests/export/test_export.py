"""An exported file answers what raffect does, says so of itself, and is there whole or not."""

import contextlib
import hashlib
import json
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import raffect
from raffect.cli import main
from raffect.config import EncoderConfig
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.encoders.tower import load_encoder
from raffect.errors import RaffectError
from raffect.export import check, formats
from raffect.export.records import RECORD_FILE, ExportRecord
from raffect.heads.checkpoint import load_head, read_card, save_head
from raffect.heads.compared import ComparedSpec
from raffect.heads.pooled import PooledSpec
from raffect.heads.prompts import PromptSpec
from raffect.recipe import HeadConfig, Recipe
from raffect.runs.data import open_dataset
from tests.helpers.banks import IDENTITY
from tests.helpers.commands import error_line
from tests.helpers.exports import FORMATS, GRAPHS, LICENCE, choose, export, folders_of
from tests.helpers.heads import make_head
from tests.helpers.learning import make_data

WINDOWS = Recipe(
    task="expr",
    head=HeadConfig(kind="temporal", width=8, layers=1, attention_heads=2, window=3),
)


def forward(folder, x):
    """Probabilities or values of one head on disk in float64, BatchNorm and all written out."""
    state = {
        name: a.astype(np.float64) for name, a in load_file(folder / "head.safetensors").items()
    }
    card = json.loads((folder / "config.json").read_text())
    y = x.astype(np.float64)
    if card["head"]["normalise"] == "l2":
        y = y / np.sqrt((y**2).sum(1, keepdims=True))
    for block in range(card["head"]["depth"]):
        y = y @ state[f"layers.{4 * block}.weight"].T + state[f"layers.{4 * block}.bias"]
        norm = f"layers.{4 * block + 1}"
        y = (y - state[f"{norm}.running_mean"]) / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        y = np.maximum(y * state[f"{norm}.weight"] + state[f"{norm}.bias"], 0)
    last = f"layers.{4 * card['head']['depth']}"
    y = y @ state[f"{last}.weight"].T + state[f"{last}.bias"]
    kind = card["data"]["task"]["kind"]
    if kind == "multiclass":
        return np.exp(y) / np.exp(y).sum(1, keepdims=True)
    return 1 / (1 + np.exp(-y)) if kind == "multilabel" else np.clip(y, -1, 1)


def answers_of(runs, x):
    """What the file must answer, by a plain loop over heads."""
    first, second, probe, au, va = (forward(folder, x) for folder in folders_of(*runs))
    expr = (first + 2 * second + 3 * probe) / 6
    return {
        "expr_probabilities": expr,
        "expr_class": (np.log(expr) + np.linspace(0.2, 0.7, 8)).argmax(1),
        "au_probabilities": au,
        "au_labels": au >= np.linspace(0.2, 0.7, 12),
        "va_values": va,
    }


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_answers_what_a_numpy_forward_pass_of_the_heads_does(tmp_path, runs, form):
    choose(runs)
    export(tmp_path, runs, form)
    run = formats.FORMATS[form].open(tmp_path / form)
    for rows in (1, 3, 200):  # the number of samples is free
        x = np.random.default_rng(rows).normal(size=(rows, IDENTITY.dim)).astype(np.float32)
        found, expected = run(x), answers_of(runs, x)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            if values.dtype.kind == "f":
                assert found[name].dtype == np.float32
                np.testing.assert_allclose(found[name], values, atol=2e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], values, err_msg=name)


def texts_of(file):
    """The metadata inside a file."""
    if file.suffix == ".onnx":
        return {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    if file.suffix == ".safetensors":
        with safe_open(file, "np") as opened:
            return opened.metadata()
    texts = dict.fromkeys(("tasks", "encoder", "data_licence", "git_commit", "versions"), "")
    torch.export.load(file, extra_files=texts)
    return texts


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_says_of_itself_what_the_record_beside_it_does(tmp_path, runs, form):
    choose(runs)
    result = export(tmp_path, runs, form)
    file = tmp_path / form / f"model.{form}"
    texts = texts_of(file)
    record = ExportRecord.from_json((tmp_path / form / RECORD_FILE).read_bytes(), file, "")
    assert record == result.record
    tasks = json.loads(texts["tasks"])
    assert [task["task"]["outputs"] for task in tasks] == [
        list(task.outputs) for task in (EXPR, AU, VA)
    ]
    assert tasks[0]["windows"] == [2] * 8
    assert tasks[1]["thresholds"][0] == pytest.approx(0.2)
    (folder,) = folders_of(runs[2])
    assert tasks[1]["heads"][0]["sha256"] == read_card(folder).sha256
    encoder = json.loads(texts["encoder"])
    assert encoder["weights_sha256"] == IDENTITY.weights_sha256
    assert encoder["preprocess"] == dict(IDENTITY.preprocess)
    assert texts["data_licence"] == LICENCE
    assert "torch" in json.loads(texts["versions"])


@pytest.mark.parametrize("form", FORMATS)
def test_no_path_of_this_machine_is_in_what_is_handed_on(tmp_path, runs, form):
    export(tmp_path, runs, form)
    for file in (tmp_path / form).iterdir():
        content = file.read_bytes()
        for path in (tmp_path, Path(raffect.__file__).parent, Path.home()):
            assert str(path).encode() not in content, (file, path)


def test_a_folder_of_official_folds_is_refused_by_their_names(tmp_path):
    (tmp_path / "dfew" / "fold-1").mkdir(parents=True)
    (tmp_path / "dfew" / "fold-1" / "env.json").touch()
    with pytest.raises(RaffectError, match="holds official folds: name those, such as .*fold-1"):
        export(tmp_path, (tmp_path / "dfew",), "safetensors")


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_names_the_folder_and_leaves_nothing(tmp_path, runs, form):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # a file of heads is larger
    try:
        with pytest.raises(OSError, match="File too large") as found:
            export(tmp_path, runs, form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found.value.filename == str(tmp_path / form)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_difference_above_the_tolerance_leaves_nothing_behind(tmp_path, runs, monkeypatch):
    monkeypatch.setitem(check.TOLERANCE, "features", 1e-9)
    with pytest.raises(RaffectError, match="differs from raffect by .* nothing was written"):
        export(tmp_path, runs, "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_outputs_that_are_not_numbers_or_of_another_shape_are_refused():
    given, right = np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32)
    about = {"runtime": "r", "source": "s"}
    for wrong in (np.full((3, 3), np.nan), np.ones((3, 3)), np.zeros((3, 2))):
        with pytest.raises(RaffectError):
            check.compare(lambda x, y=wrong: {"a": y[: len(x)]}, given, {"a": right}, **about)


def test_decisions_may_differ_near_a_threshold_and_no_more():
    given, right = np.zeros((100, 2), np.float32), np.arange(100)
    about = {"runtime": "r", "source": "s"}

    def agree(num_wrong):
        wrong = np.where(np.arange(100) < num_wrong, -1, right)
        answers = iter((wrong[:99], wrong[99:]))
        return check.compare(lambda _: {"a": next(answers)}, given, {"a": right}, **about)

    assert agree(2).decided_otherwise == {"a": 2}
    with pytest.raises(RaffectError, match="r decides 3 of 100 otherwise than raffect on s"):
        agree(3)


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(tmp_path, runs):
    export(tmp_path, runs, "safetensors")
    before = {file: file.read_bytes() for file in (tmp_path / "safetensors").iterdir()}
    with pytest.raises(RaffectError, match="exists and is not an empty folder"):
        export(tmp_path, runs, "safetensors")
    assert before == {file: file.read_bytes() for file in (tmp_path / "safetensors").iterdir()}
    (tmp_path / "empty").mkdir()
    with contextlib.chdir(tmp_path / "empty"), pytest.raises(RaffectError, match="where you are"):
        export(tmp_path, runs, "safetensors", out=Path())
    export(tmp_path, runs, "safetensors", out=tmp_path / "empty")
    assert len(list((tmp_path / "empty").iterdir())) == 3


@pytest.mark.cluster
def test_inputs_and_outputs_of_onnx_have_the_names_and_shapes_of_the_record(tmp_path, runs):
    record = export(tmp_path, runs, "onnx").record
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    (given,), outputs = graph.input, graph.output
    dims = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert (given.name, tuple(dims)) == (record.input, record.shape) == ("features", ("N", 6))
    assert [value.name for value in outputs] == [o for task in record.tasks for o in task.outputs]
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in outputs]
    assert sizes == [["N", 8], ["N"], ["N", 12], ["N", 12], ["N", 2]]


def test_two_exports_of_the_same_heads_have_the_same_tensors(tmp_path, runs):
    # The file itself has its metadata in another order each time, as safetensors writes it
    first, second = (
        export(tmp_path, runs, "safetensors", out=tmp_path / name).record for name in "ab"
    )
    assert replace(first, sha256={}) == replace(second, sha256={})
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_validation_frames_of_the_bank_are_what_is_compared_on(tmp_path):
    data = make_data(tmp_path / "data")
    facts = open_dataset(data / "bank", data / "labels" / "expr.parquet", "expr").facts
    make_head(tmp_path / "h", EXPR, encoder=facts.encoders[0], data=facts)
    result = export(tmp_path, (tmp_path / "h",), "safetensors")
    agreement = result.record.agreement
    assert (agreement.samples, agreement.source) == (50, "validation frames of the bank")
    (task,) = result.record.tasks
    sizes = "320 frames of 8 videos", "160 frames of 4 videos"
    assert (task.trained_on, task.judged_on) == sizes
    shutil.rmtree(data / "bank")
    again = export(tmp_path, (tmp_path / "h",), "safetensors", out=tmp_path / "again")
    assert again.record.agreement.source.startswith("features drawn at random")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"data_licence": " "}, "--data-licence: not stated; a model card says"),
        ({"data_licence": "mine\n## Scores"}, "--data-licence: has line ends or signs"),
        ({"weights_licence": "MIT\r"}, "--weights-licence: has line ends or signs"),
        ({"licence": "mit\ntags: [x]"}, "not the Hub's name of a licence"),
        ({"licence": "Apache-2.0"}, "--licence Apache-2.0: not the Hub's name of a licence"),
        ({"size": 64}, "--size: is for pictures"),
        ({"images": Path("faces")}, "--images: is for pictures"),
        ({"input": "pixels"}, "holds weights of heads alone; expected onnx or pt2"),
        ({"num_checked": -1}, "--num-checked -1: expected 0"),
        ({"run": ()}, "--run: expected one run folder"),
        ({"run": Path("gone")}, "gone: no head in weights"),
        ({"input": "pixels", "format": "pt2"}, "--weights-licence: not stated"),
        ({"input": "pixels", "format": "pt2", "weights_licence": "MIT"}, "no such model"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path, more, line):
    encoder = replace(IDENTITY, weights="laion2b")
    make_head(tmp_path / "h", EXPR, encoder=encoder)
    with pytest.raises(RaffectError, match=re.escape(line)):
        export(tmp_path, (tmp_path / "h",), more.pop("format", "safetensors"), **more)
    assert [path.name for path in tmp_path.iterdir()] == ["h"]


def test_heads_of_different_encoders_or_windows_do_not_go_into_one_file(tmp_path):
    make_head(tmp_path / "a", EXPR)
    make_head(tmp_path / "b", AU, encoder=replace(IDENTITY, weights_sha256="b" * 64))
    make_head(tmp_path / "w", AU, recipe=replace(WINDOWS, task="au"))
    for other, line in (("b", "are of different encoders"), ("w", "read windows of 1 and 3")):
        with pytest.raises(RaffectError, match=line):
            export(tmp_path, (tmp_path / "a", tmp_path / other), "safetensors")


def test_a_missing_package_is_one_line_with_the_extra(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setattr(formats.Onnx, "packages", ("onnx", "nonesuch"))
    command = ["export", "--format", "onnx", "--data-licence", "x", "--out", str(tmp_path / "o")]
    assert main([*command, "--run", str(runs[0])]) == 2
    line = error_line(capsys.readouterr().err)
    assert "nonesuch not installed" in line
    assert "; `uv pip install -e '.[export]'` in raffect's clone" in line


@pytest.mark.parametrize("form", GRAPHS)
def test_heads_that_read_windows_are_exported_with_missing_frames(tmp_path, form):
    head = make_head(tmp_path / "w", EXPR, recipe=WINDOWS)
    result = export(tmp_path, (tmp_path / "w",), form)
    assert result.record.shape == ("N", 3, IDENTITY.dim)
    x = np.random.default_rng(0).normal(size=(5, 3, IDENTITY.dim)).astype(np.float32)
    x[1, 0] = x[2, 1] = x[3, 1:] = np.nan
    with torch.no_grad():
        expected = head(torch.from_numpy(x)).softmax(1).numpy()
    found = formats.FORMATS[form].open(tmp_path / form)(x)["expr_probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


KINDS = {
    "prompts": PromptSpec(IDENTITY.dim, 8, False, 2, 3, 5, 10.0, "a" * 64, "b" * 64),
    "compared": ComparedSpec(PooledSpec(IDENTITY.dim), 8),
}


@pytest.mark.parametrize("form", GRAPHS)
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_zero_shot_heads_are_exported(tmp_path, kind, form):
    make_head(tmp_path / "h", EXPR)
    spec, dice = KINDS[kind], torch.Generator().manual_seed(0)
    buffers = {name: torch.randn(1, *shape, generator=dice) for name, shape in spec.buffers.items()}
    batch = spec.build(torch.randn(1, spec.num_weights, generator=dice), buffers)
    card = replace(read_card(tmp_path / "h"), head=spec.to_json())
    save_head(tmp_path / "h", card, batch.state(0))
    export(tmp_path, (tmp_path / "h",), form)
    x = torch.randn(4, IDENTITY.dim, generator=dice)
    expected = load_head(tmp_path / "h")[0](x).softmax(1).detach().numpy()
    found = formats.FORMATS[form].open(tmp_path / form)(x.numpy())["expr_probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.cluster
def test_weights_that_are_too_large_for_one_onnx_file_lie_beside_it(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(formats, "_MOST_IN_ONE", 0)
    result = export(tmp_path, runs, "onnx")
    assert list(result.record.sha256) == ["model.onnx", "model.onnx.data"]
    for name, digest in result.record.sha256.items():
        assert hashlib.sha256((tmp_path / "onnx" / name).read_bytes()).hexdigest() == digest


def test_a_head_that_reads_windows_has_no_folded_weights_and_takes_no_picture(tmp_path):
    make_head(tmp_path / "w", EXPR, recipe=WINDOWS)
    with pytest.raises(RaffectError, match="a head of kind temporal is more than layers"):
        export(tmp_path, (tmp_path / "w",), "safetensors")
    pixels = {"input": "pixels", "weights_licence": "MIT"}
    with pytest.raises(RaffectError, match="read windows of 3 frames, and a file of pictures"):
        export(tmp_path, (tmp_path / "w",), "pt2", **pixels)


@pytest.mark.cluster
@pytest.mark.parametrize(("form", "size"), [("onnx", 0), ("onnx", 60), ("pt2", 0), ("pt2", 60)])
def test_pictures_go_in_as_they_are_and_are_resized_as_pil_does(tmp_path, embedded, form, size):
    head = make_head(tmp_path / "h", EXPR, encoder=embedded)
    result = export(tmp_path, (tmp_path / "h",), form, input="pixels", size=size, num_checked=5)
    side = size or 112
    assert result.record.shape == ("N", side, side, 3)
    # The oracle resizes by PIL, normalises by the published numbers, and uses no code of exports
    pixels = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), np.uint8)
    encoder = load_encoder(EncoderConfig(model="raffect-faces"), "cpu")
    large = [
        np.asarray(Image.fromarray(one).resize((112, 112), Image.Resampling.BICUBIC))
        for one in pixels
    ]
    mean, std = (np.array(embedded.preprocess[name]) for name in ("mean", "std"))
    batch = ((np.stack(large) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        features = encoder.tower(torch.from_numpy(batch)).half()
        expected = head(features.float()).softmax(1).numpy()
    found = formats.FORMATS[form].open(tmp_path / form)(pixels)["expr_probabilities"]
    np.testing.assert_allclose(found, expected, atol=check.TOLERANCE["pixels"])


def test_pictures_larger_than_the_encoders_input_are_refused(tmp_path, embedded):
    make_head(tmp_path / "h", EXPR, encoder=embedded)
    with pytest.raises(RaffectError, match="--size 200: raffect-faces takes 112 pixels"):
        export(tmp_path, (tmp_path / "h",), "pt2", input="pixels", size=200)


def test_an_encoder_of_other_weights_than_the_heads_is_refused(tmp_path, embedded):
    make_head(tmp_path / "h", EXPR, encoder=replace(embedded, weights_sha256="0" * 64))
    with pytest.raises(RaffectError, match="not the encoder of these heads .weights_sha256"):
        export(tmp_path, (tmp_path / "h",), "pt2", input="pixels")


def test_pictures_to_compare_on_are_read_and_a_damaged_one_is_named(tmp_path, embedded):
    from raffect.export.samples import take_pictures

    folder = tmp_path / "faces"
    folder.mkdir()
    with pytest.raises(RaffectError, match="no picture in it"):
        take_pictures(folder, 20, 3)
    for k in range(4):
        Image.new("RGB", (30, 40), (k, 0, 0)).save(folder / f"{k}.png")
    pictures, source = take_pictures(folder, 20, 3)
    assert (pictures.shape, source) == ((3, 20, 20, 3), "pictures of --images")
    assert pictures[2, 0, 0].tolist() == [2, 0, 0]
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(RaffectError, match=r"1\.png: cannot be read"):
        take_pictures(folder, 20, 3)
