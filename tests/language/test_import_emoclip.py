"""Checkpoints of EmoCLIP's released code: the head that they hold, and files that are refused."""

import json
import pickle
import warnings
import zipfile

import pytest
import torch

import raffect
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import ImportEmoclipConfig
from raffect.encoders.tower import build_model
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.heads.head_batch import EmbeddingSpec
from raffect.heads.head_kinds import read_spec
from raffect.heads.released_emoclip import ReleasedEmoclipSpec
from raffect.language.import_emoclip import import_emoclip
from raffect.recipe import HeadConfig
from tests.helpers.banks import IDENTITY, TINY
from tests.helpers.texts import embedded

DIM = IDENTITY.dim
SPEC = ReleasedEmoclipSpec(DIM, 2, 1)


@pytest.fixture
def bank(tmp_path):
    Bank(tmp_path / "bank").claim(IDENTITY)
    return tmp_path / "bank"


def make_state(spec=SPEC, seed=3):
    """What the released code saves of its own tensors."""
    views = spec.views(spec.initial_row(seed, HeadConfig())[None])
    return {name: view[0].clone() for name, view in views.items()}


def save(path, content):
    torch.save(content, path)
    return path


def config_of(file, bank, **changes):
    values = {"file": file, "bank": bank, "out": file.parent / "head", **changes}
    return ImportEmoclipConfig(**values)


def in_parallel(state):
    """As DistributedDataParallel names tensors, with CLIP's towers beside them."""
    towers = {"backbone.text_projection": torch.zeros(2, 2), "backbone.logit_scale": torch.ones(())}
    return {f"module.{name}": tensor for name, tensor in (state | towers).items()}


def test_a_checkpoint_becomes_a_head_with_its_outputs(tmp_path, bank):
    state = make_state()
    state["logit_scale"].fill_(4.0)
    found = import_emoclip(config_of(save(tmp_path / "4.pth", in_parallel(state)), bank, window=5))
    head, card = load_head(tmp_path / "head")
    x = torch.randn(4, 5, DIM)
    assert torch.equal(head(x), SPEC.build_module(state)(x))
    assert head(x).norm(dim=1).tolist() == pytest.approx([torch.tensor(4.0).exp().item()] * 4)
    # What is known of it, and what is not.
    assert (found.num_weights, found.layers, found.window) == (SPEC.num_weights - 1, 2, 5)
    assert found.left_out == {"of CLIP's own towers, which the bank's encoder has": 2}
    assert (found.has_scale, found.is_verified) == (True, False)
    assert (card.recipe.head.kind, card.recipe.head.window) == ("emoclip-released", 5)
    assert (card.task.kind, card.data.encoders) == ("contrastive", (IDENTITY,))
    assert "its training unknown" in card.data.caveat
    assert (card.validation, card.chance.majority, card.data.labels) == (None, None, "")
    assert card.epoch == 1
    assert isinstance(read_spec(card.head, tmp_path), EmbeddingSpec)


def test_a_checkpoint_without_a_scale_has_clips(tmp_path, bank):
    state = make_state()
    del state["logit_scale"]
    state |= {"mlp.0.weight": torch.zeros(3, DIM), "mlp.2.bias": torch.zeros(7)}
    found = import_emoclip(config_of(save(tmp_path / "4.pth", state), bank))
    assert found.scale == pytest.approx(100)
    assert found.left_out == {"of a classifier behind the head": 2}
    lines = "\n".join(found.lines())
    assert "scale: the file has none; taken as CLIP's 100" in lines
    assert "not read: 2 tensors of a classifier" in lines
    assert "how and on what it was trained is not in the file" in lines


@pytest.mark.parametrize("beginning", ["backbone.visual.", "module.backbone."])
def test_the_image_tower_in_a_checkpoint_must_be_the_banks(tmp_path, beginning):
    identity = embedded()
    Bank(tmp_path / "bank").claim(identity)
    tower = build_model(resolve(TINY)).visual.state_dict()
    spec = ReleasedEmoclipSpec(identity.dim, 1, 1)
    state = make_state(spec) | {f"{beginning}{name}": value for name, value in tower.items()}
    config = config_of(save(tmp_path / "a.pth", state), tmp_path / "bank")
    found = import_emoclip(config)
    assert found.is_verified
    assert f"image tower: that of the file made {tmp_path / 'bank'}" in found.lines()
    # One number of it is another.
    name = next(iter(tower))
    state[f"{beginning}{name}"] = tower[name] + 1
    other = config_of(save(tmp_path / "b.pth", state), tmp_path / "bank", out=tmp_path / "other")
    with pytest.raises(RaffectError, match="its image tower .* is not the one that made"):
        import_emoclip(other)
    assert not (tmp_path / "other").exists()


def test_the_command_says_what_it_did(tmp_path, bank, capsys):
    file = save(tmp_path / "4.pth", in_parallel(make_state()))
    words = ["import-emoclip", "--file", str(file), "--bank", str(bank)]
    assert main([*words, "--out", str(tmp_path / "head")]) == 0
    out = capsys.readouterr().out
    assert f"{SPEC.num_weights - 1:,} weights in 2 layers, windows of 32" in out
    assert f"raffect zeroshot --labels LABELS --out RUN --head {tmp_path / 'head'}" in out
    # Again into the same folder: one line.
    assert main([*words, "--out", str(tmp_path / "head")]) == 2
    assert "holds a head already" in capsys.readouterr().err
    assert raffect.import_emoclip is import_emoclip


# Files that are refused, in one line


class Trap:
    """An object whose pickle would make a folder when it is loaded."""

    def __reduce__(self):
        import os

        return os.mkdir, ("trap",)


def refused(file, bank):
    with pytest.raises(RaffectError) as caught:
        import_emoclip(config_of(file, bank))
    text = str(caught.value)
    assert text.startswith(f"--file {file}: ")
    assert "\n" not in text
    assert len(text) < 420
    assert not (file.parent / "head").exists()
    return text


@pytest.mark.parametrize("content", [bytes(range(149, 256)) * 20, b"no weights at all"])
def test_bytes_of_something_else_are_not_called_code(tmp_path, bank, content):
    file = tmp_path / "4.pth"
    file.write_bytes(content)
    assert "is not a file of tensors as torch writes them, or is damaged" in refused(file, bank)


def test_a_plain_pickle_and_an_empty_file_are_refused_without_a_warning(tmp_path, bank):
    file = tmp_path / "4.pth"
    file.write_bytes(pickle.dumps({"trap": Trap()}))
    with warnings.catch_warnings(action="error"):
        assert "is not a file of tensors" in refused(file, bank)
    file.write_bytes(b"")
    assert f"--file {file}: is empty; expected the state dict" in refused(file, bank)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path, bank, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "4.pth"
    content = make_state() | {"trap": Trap()}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    assert "holds Python objects instead of tensors" in refused(file, bank)
    assert not (tmp_path / "trap").exists()


def test_files_that_hold_no_state_dict_are_refused(tmp_path, bank):
    file = tmp_path / "4.pth"
    assert "no such file" in refused(file, bank)
    file.write_bytes(b"")
    refused(file, bank)
    file.write_bytes(b"not a checkpoint" * 100)
    refused(file, bank)
    for content in (
        [1, 2],
        {},
        {"epoch": 3},
        {"state_dict": make_state()},
        torch.zeros(3),
        {1: torch.zeros(3)},
    ):
        save(file, content)
        assert "is not a state dict" in refused(file, bank)
    # A zip file of something else, and one that is cut off.
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "b")
    refused(file, bank)
    save(file, make_state())
    file.write_bytes(file.read_bytes()[:-5000])
    refused(file, bank)


LAYER = "temporal.temporal_transformer.layers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal.cls_token": None}, "has no tensor temporal.cls_token"),
        ({"temporal.cls_token": torch.zeros(1, 1, DIM + 1)}, "features have 7 numbers"),
        ({"temporal.cls_token": torch.zeros(DIM)}, "1 tensors differ"),
        ({"temporal.pos_embedding": torch.zeros(1, 77, DIM)}, r"first temporal.pos_embedding"),
        ({"temporal.other": torch.zeros(3)}, "first temporal.other"),
        ({"head.weight": torch.zeros(3)}, "first head.weight"),
        ({f"{LAYER}.0.0.fn.fn.to_qkv.weight": None}, "is not of attention heads of 2048"),
        # The swap undone: attention heads of 64.
        ({f"{LAYER}.0.0.fn.fn.to_qkv.weight": torch.zeros(3 * 64, DIM)}, "heads of 2048"),
        ({f"{LAYER}.1.1.fn.norm.bias": None}, "first .*layers.1.1.fn.norm.bias"),
        (
            {f"{LAYER}.7.1.fn.norm.bias": torch.zeros(DIM)},
            "from a released head of 3 layers",
        ),
        ({"logit_scale": torch.tensor(torch.nan)}, "logit_scale is not of finite"),
        ({"logit_scale": torch.tensor(4)}, "logit_scale is not of finite"),
        ({"temporal.cls_token": torch.full((1, 1, DIM), torch.inf)}, "is not of finite"),
        # A few numbers, or none, that claim any size.
        ({"temporal.pos_embedding": torch.zeros(1, 1, 1).expand(1, 1024, DIM)}, "claims more"),
        ({"backbone.conv1.weight": torch.zeros(1).expand(200_000, 500_000)}, "claims more"),
        ({"mlp.0.weight": torch.zeros(9).as_strided((10**6, 9), (0, 1))}, "claims"),
        ({"mlp.0.weight": torch.zeros(10**6, 10**6, device="meta")}, "claims more"),
        ({"module.temporal.cls_token": torch.zeros(1, 1, DIM)}, "has names twice"),
    ],
)
def test_tensors_that_are_no_released_head_are_refused(tmp_path, bank, change, message):
    state = {name: value for name, value in (make_state() | change).items() if value is not None}
    file = save(tmp_path / "4.pth", state)
    with pytest.raises(RaffectError, match=message):
        import_emoclip(config_of(file, bank))
    refused(file, bank)


def test_a_folder_that_is_no_bank_is_refused(tmp_path):
    file = save(tmp_path / "4.pth", make_state())
    with pytest.raises(RaffectError, match="no bank there"):
        import_emoclip(config_of(file, tmp_path / "gone"))
    with pytest.raises(RaffectError, match="--window 1024: expected 1 to 1023"):
        config_of(file, tmp_path, window=1024)


def test_the_card_is_plain_json(tmp_path, bank):
    import_emoclip(config_of(save(tmp_path / "4.pth", make_state()), bank))
    content = json.loads((tmp_path / "head" / "config.json").read_text())
    assert content["head"] == SPEC.to_json()
    assert (content["data"]["labels"], content["validation"]) == ("", None)


def test_a_tensor_whose_rows_are_in_another_order_is_whole(tmp_path, bank):
    state = make_state()
    name = f"{LAYER}.0.0.fn.fn.to_qkv.weight"
    state[name] = state[name].T.contiguous().T
    import_emoclip(config_of(save(tmp_path / "4.pth", state), bank))
    head, _ = load_head(tmp_path / "head")
    x = torch.randn(2, 5, DIM)
    assert torch.equal(head(x), SPEC.build_module(make_state())(x))
