"""`--bank A B`: a command on several banks is that command on the bank that joins them."""

from dataclasses import replace

import numpy as np
import pytest

from raffect.bank.format import Bank
from raffect.bank.joined import join_identities, suggest_join
from raffect.cli import main, parse
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.several import name_joined_bank
from tests.helpers.commands import error_line
from tests.helpers.learning import IDENTITY, make_data, scores_of, words

OTHER = replace(IDENTITY, model="other", weights_sha256="b" * 64, dim=5, caveat="")
FEW = ("--epochs", "1")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Data of a bank, and beside it a second bank of other vectors, in other shards."""
    data = make_data(tmp_path_factory.mktemp("both"), videos=6)
    bank, rng = Bank(data / "other"), np.random.default_rng(1)
    bank.claim(OTHER)
    plan = bank.extend_plan(Bank(data / "bank").plan.table, 50)
    for shard in range(plan.num_shards):
        keys = plan.rows(shard)
        x = rng.normal(size=(len(keys), OTHER.dim)).astype(np.float16)
        bank.commit(shard, keys, x, {}, OTHER)
    return data


def with_banks(command: list[str], *banks: str) -> list[str]:
    """The words of a command with these words in place of its bank."""
    place = command.index("--bank")
    return [*command[: place + 1], *banks, *command[place + 2 :]]


def test_training_on_two_banks_is_training_on_the_bank_that_joins_them(both, tmp_path, capsys):
    parts = [str(both / "bank"), str(both / "other")]
    command = words("train", both, tmp_path / "several", *FEW)
    assert main(with_banks(command, *parts)) == 0
    path = both / "bank+other"
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"joined bank {path}: 240 of 240 frames have all parts, 29 numbers, ")
    assert line.endswith(" kB, 240 frames written")

    # Joined by hand
    joined = str(tmp_path / "joined")
    assert main(["bank", "join", "--banks", *parts, "--bank", joined]) == 0
    command = words("train", both, tmp_path / "joined run", *FEW)
    assert main(with_banks(command, joined)) == 0
    (one,), (two,) = (
        sorted((tmp_path / name / "weights").glob("*/last")) for name in ("several", "joined run")
    )
    (first, card), (second, other) = load_head(one), load_head(two)
    assert card.data.encoders == other.data.encoders
    assert card.data.bank_digest == other.data.bank_digest
    assert card.data.caveats == ("made by a test", "drawn faces")
    state = second.state_dict()
    assert all(bool((value == state[name]).all()) for name, value in first.state_dict().items())
    assert next(iter(state.values())).shape[-1] == 29
    scores = [scores_of(tmp_path / name)["heads"] for name in ("several", "joined run")]
    assert scores[0] == scores[1]

    # Other commands, which write nothing into the joined bank
    capsys.readouterr()
    judge = ["evaluate", "--run", str(tmp_path / "several"), "--labels", str(both), "--device"]
    assert main([*judge, "cpu", "--bank", parts[0], "--bank", parts[1]]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(" kB, up to date")

    # One of the parts alone, and both in the other order, are of another encoder
    assert main([*judge, "cpu", "--bank", parts[0]]) == 2
    error = error_line(capsys.readouterr().err)
    assert "head against bank: model: m + other against m; " in error
    assert "dim: 29 against 24" in error
    assert main([*judge, "cpu", "--bank", *reversed(parts)]) == 2
    error = error_line(capsys.readouterr().err)
    assert "part 1 model: m against other; " in error
    assert "part 2 dim: 5 against 24" in error
    remedy = "; name the same banks as the head's, in its order: --bank <m> <other>"
    assert error.endswith(remedy)


def test_heads_of_a_mean_of_views_suggest_it_where_views_are_concatenated():
    flip = replace(IDENTITY, preprocess={**IDENTITY.preprocess, "view": "flip"})
    mean = join_identities([IDENTITY, flip], "average")
    turned = join_identities([flip, IDENTITY], "concatenate")
    remedy = "name the same banks as the head's, in its order: --bank <m> <m flip>"
    assert suggest_join(mean, turned) == f"{remedy} --how average"
    assert suggest_join(join_identities([IDENTITY, flip], "concatenate"), mean) == remedy
    # Other encoders, or one alone, are no matter of order
    assert suggest_join(mean, IDENTITY) == suggest_join(IDENTITY, mean) == ""
    assert suggest_join(mean, join_identities([IDENTITY, OTHER], "concatenate")) == ""


def test_an_input_among_the_banks_of_predict_suggests_the_command_that_takes_it(tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    clip.touch()
    words = ["predict", "--head", "run", "--out", "o.csv", "--bank", "A", str(clip)]
    assert main(words) == 2
    error = error_line(capsys.readouterr().err)
    assert f"--bank A {clip}: {clip} is no bank but a file; give several banks, or " in error
    assert f"leave --bank out: `raffect predict {clip} --head ...`" in error


def test_an_incomplete_part_is_said_of_the_joined_bank(both, tmp_path, capsys):
    more = Bank(tmp_path / "more")
    third = replace(OTHER, model="third")
    more.claim(third)
    plan = more.extend_plan(Bank(both / "bank").plan.table, 50)
    for shard in range(1, plan.num_shards):
        keys = plan.rows(shard)
        more.commit(shard, keys, np.ones((len(keys), 5), np.float16), {}, third)
    command = words("train", both, tmp_path / "run", *FEW)
    assert main(with_banks(command, str(both / "bank"), str(more.path))) == 2
    error = error_line(capsys.readouterr().err)
    assert "64 of 160 train frames are planned and not there" in error
    assert "finish `raffect bank join`" in error


@pytest.mark.parametrize(
    ("words", "parts", "name", "how"),
    [
        ("--bank /x/A /x/B", ["/x/A", "/x/B"], "/x/A+B", "concatenate"),
        ("--bank /x/A --epochs 3 --bank /x/B", ["/x/A", "/x/B"], "/x/A+B", "concatenate"),
        ("--bank=/x/A --bank=/x/B", ["/x/A", "/x/B"], "/x/A+B", "concatenate"),
        ("--bank /x/A /x/B /x/C --how average", ["/x/A", "/x/B", "/x/C"], "/x/A+B+C-average", None),
        ("--bank /x/A/ /x/y/../B", ["/x/A", "/x/B"], "/x/A+B", "concatenate"),
        ("--bank s3://x/A s3://x/B", ["s3://x/A", "s3://x/B"], "s3://x/A+B", "concatenate"),
    ],
)
def test_the_words_name_the_parts_and_where_the_joined_bank_lies(words, parts, name, how):
    others = ["paper", "--labels", "l", "--out", "o"]
    rest, several = name_joined_bank("train", [*others, *words.split()])
    assert several is not None
    assert [str(part) for part in several.parts] == parts
    assert (str(several.path), several.how) == (name, how or "average")
    assert rest[-2:] == ["--bank", name]
    config = parse("train", [*others, *words.split()])
    assert str(config.bank) == name


def test_parts_of_equal_names_in_other_folders_are_joined_in_banks_of_their_own():
    found = set()
    for other in ("/y/bank", "/z/bank"):
        _, several = name_joined_bank("predict", ["--bank", "/x/bank", other])
        assert several is not None
        assert several.path.name.startswith("bank+bank-")
        found.add(several.path)
    assert len(found) == 2


def test_one_bank_is_left_alone_and_what_writes_banks_takes_no_more(capsys):
    words = ["--bank", "A", "--labels", "l"]
    assert name_joined_bank("evaluate", words) == (words, None)
    with pytest.raises(SystemExit):
        parse("extract", ["--manifest", "m", "--bank", "A", "B"])
    assert "B" in capsys.readouterr().err
    with pytest.raises(RaffectError, match="--how mean: expected concatenate or average"):
        name_joined_bank("train", ["--bank", "A", "B", "--how", "mean"])


def test_without_the_right_to_write_beside_the_first_bank_the_remedy_is_named(monkeypatch):
    # The superuser may write anywhere, so the operating system's refusal is raised here
    def refused(*_):
        raise PermissionError(13, "Permission denied", "/ro/A+B")

    monkeypatch.setattr("raffect.bank.join.join_banks", refused)
    _, several = name_joined_bank("train", ["--bank", "/ro/A", "/ro/B"])
    remedy = "raffect bank join --banks /ro/A /ro/B --how concatenate --bank BANK"
    with pytest.raises(RaffectError, match=remedy):
        several.join()
