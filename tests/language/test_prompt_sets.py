"""Prompt sets: classes are found by name, none is left out silently, files are checked."""

import dataclasses

import pytest

from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.tasks import Task
from raffect.encoders.text import open_text_encoder
from raffect.errors import RaffectError
from raffect.language.prompt_sets import list_shipped, prompts_for, shipped_for
from tests.helpers.texts import embedded

MAFW = Task(
    name="mafw",
    kind="multiclass",
    outputs=(
        *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
        *("contempt", "anxiety", "helplessness", "disappointment"),
    ),
    columns=("label",),
)


def write(tmp_path, text):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return str(file)


def test_every_shipped_set_describes_a_task_and_fits_clip_and_the_embedded_encoder(texts):
    used = {name for task in (EXPR, AU, MAFW) for name in shipped_for(task)}
    assert used == set(list_shipped())
    encoder = open_text_encoder(embedded(), texts)
    for task in (EXPR, AU):
        for name in shipped_for(task):
            encoder.encode(prompts_for(name, task).prompts)


def test_every_phrase_is_put_into_every_template(tmp_path):
    lines = 'templates = ["a {} face", "{}!"]\n[classes]\nsad = ["blue", "down"]\nJoy = ["glad"]\n'
    task = Task(name="t", kind="multiclass", outputs=("Sadness", "happy"), columns=("c",))
    found = prompts_for(write(tmp_path, lines), task)
    assert found.name == "mine"
    assert found.outputs == {
        "Sadness": (("a blue face", "blue!", "a down face", "down!"),),
        "happy": (("a glad face", "glad!"),),
    }


def test_classes_are_found_by_name_whatever_their_order_case_or_language_of_a_data_set():
    other = dataclasses.replace(
        EXPR, outputs=("Other", "happy", "SAD", "Surprised", "fear", "disgust", "angry", "neutral")
    )
    ours, theirs = prompts_for("photo", EXPR).outputs, prompts_for("photo", other).outputs
    assert theirs["happy"] == ours["Happiness"]
    assert theirs["angry"] == ours["Anger"]
    assert theirs["Other"] is ours["Other"] is None


def test_a_compound_has_the_prompts_of_its_parts(tmp_path):
    lines = '[classes]\nHappiness = ["glad"]\nSurprise = ["oh"]\n'
    lines += '[compounds]\nboth = ["joy", "surprise"]\n'
    task = Task(name="t", kind="multiclass", outputs=("both", "happy"), columns=("c",))
    found = prompts_for(write(tmp_path, lines), task)
    assert found.outputs == {"both": (("glad",), ("oh",)), "happy": (("glad",),)}


def test_a_class_without_a_prompt_is_refused_by_name():
    with pytest.raises(RaffectError, match="--prompts facs: no prompt for contempt; add it to"):
        prompts_for("facs", MAFW)
    with pytest.raises(RaffectError, match="--prompts photo: no prompt for AU1"):
        prompts_for("photo", AU)


def test_a_label_called_other_needs_a_prompt(tmp_path):
    task = Task(name="t", kind="multilabel", outputs=("AU1", "Other"), columns=("a", "b"))
    with pytest.raises(RaffectError, match="no prompt for Other"):
        prompts_for("facs", task)


def test_labels_need_what_a_face_at_rest_shows(tmp_path):
    task = Task(name="t", kind="multilabel", outputs=("AU1",), columns=("a",))
    file = write(tmp_path, '[classes]\nAU1 = ["brows"]\n')
    with pytest.raises(RaffectError, match=r"labels need .*; add rest = \[\.\.\.\]"):
        prompts_for(file, task)


def test_a_set_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(RaffectError, match="no such prompt set .did you mean facs.*; expected"):
        prompts_for("fcas", EXPR)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("classes = 1", "classes"),
        ("[classes]", "classes"),
        ("[classes]\nAnger = []", "Anger"),
        ('[classes]\nAnger = [""]', "Anger"),
        ('[classes]\nAnger = ["a"]\nangry = ["b"]', "anger: there twice"),
        ('templates = ["no place"]\n[classes]\nAnger = ["a"]', "expected one {}"),
        ('[classes]\nAnger = ["a"]\n[compounds]\nx = ["Fear"]', "compound x: no class Fear"),
        ('clases = 1\n[classes]\nAnger = ["a"]', "clases"),
        ("not toml", "not a prompt set in TOML"),
        ("day = 2026-11-26\n[classes]", "not a prompt set in TOML"),
    ],
)
def test_a_faulty_file_is_one_line_that_names_the_fault(tmp_path, text, fault):
    with pytest.raises(RaffectError, match="mine.toml") as error:
        prompts_for(write(tmp_path, text), EXPR)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)
