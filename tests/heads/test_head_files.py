"""Specs of MLPs and heads on a disk: what comes back, and what is refused."""

import json

import pytest
import torch

from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_batch, load_head, read_card, save_head
from raffect.heads.head import MlpSpec
from raffect.heads.head_kinds import read_spec
from tests.helpers.mlp_heads import EACH_SHAPE, make_heads, make_pass
from tests.helpers.small_heads import (
    CPU,
    DIM,
    buffer_rows,
    make_card,
    require_refusal,
)


@EACH_SHAPE
def test_a_spec_and_a_head_come_back_from_their_files(tmp_path, spec):
    heads = make_heads(spec, dtype=torch.float32)
    x, noise, _ = make_pass(spec, dtype=torch.float32)
    heads.forward(heads.rows, x, noise, update_buffers=True)
    save_head(tmp_path, make_card(spec), heads.state(1))
    assert read_spec(json.loads(json.dumps(spec.to_json())), tmp_path) == spec
    assert read_card(tmp_path).head == spec.to_json()
    batch, card = load_batch(tmp_path, CPU)
    assert (batch.spec, card.status, len(batch)) == (spec, "done", 1)
    assert torch.equal(batch.rows[0], heads.rows[1])
    assert torch.equal(batch_vector(batch, 0), batch_vector(heads, 1))
    predicted = batch.predict(batch.rows, batch.buffers, x[0])
    assert torch.equal(predicted[0], heads.predict(heads.rows, heads.buffers, x[0])[1])
    assert torch.allclose(load_head(tmp_path)[0](x[0]), predicted[0], atol=1e-4)


def batch_vector(heads, head):
    return buffer_rows(heads, head) if heads.buffers else torch.zeros(0)


GOOD = MlpSpec(DIM, 16, 2, 8).to_json()
HOSTILE = [
    None,
    [],
    "mlp",
    {},
    {"kind": []},
    {"kind": "os.system"},
    {name: value for name, value in GOOD.items() if name != "dim"},
    GOOD | {"more": 1},
    GOOD | {"depth": 10**9},
    GOOD | {"depth": -1},
    GOOD | {"depth": "2"},
    GOOD | {"depth": True},
    GOOD | {"depth": 2.0},
    GOOD | {"depth": None},
    GOOD | {"depth": 0},  # a width without a block
    GOOD | {"width": 0},
    GOOD | {"width": 10**30},
    GOOD | {"dim": [1]},
    GOOD | {"outputs": 0},
    GOOD | {"normalise": "l1"},
    GOOD | {"normalise": ["l2"]},
    GOOD | {"normalise": "x" * 10_000},
]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: str(content)[:60])
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content)


@pytest.mark.parametrize(
    "change",
    [{"outputs": 9}, {"depth": 1}, {"depth": 0, "width": 0}, {"width": 17}],
    ids=str,
)
def test_a_spec_that_its_file_does_not_hold_is_refused(tmp_path, change):
    spec = MlpSpec(DIM, 16, 2, 8)
    save_head(tmp_path, make_card(spec), make_heads(spec).state(0))
    config = read_card(tmp_path).to_json()
    (tmp_path / "config.json").write_text(json.dumps(config | {"head": config["head"] | change}))
    with pytest.raises(RaffectError, match="does not fit its config.json"):
        load_head(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.complex64])
def test_tensors_of_another_type_are_refused(tmp_path, dtype):
    spec = MlpSpec(DIM, 0, 0, 8)
    state = {name: tensor.to(dtype) for name, tensor in make_heads(spec).state(0).items()}
    save_head(tmp_path, make_card(spec), state)
    with pytest.raises(RaffectError, match="does not fit its config.json"):
        load_batch(tmp_path, CPU)
