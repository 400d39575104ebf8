"""The reader of records checks types, ranges, depth and unknown fields; each fault is one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from raffect.errors import RaffectError
from raffect.storage.records import Record, parse_object


@dataclass(frozen=True, kw_only=True)
class Inner(Record):
    count: Annotated[int, Ge(0)]
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer(Record):
    inner: Inner
    kind: Literal["a", "b"]
    score: float | None = None


OUTER = Outer(inner=Inner(count=3, sizes=(1.5, 2.0)), kind="a", score=0.25)


def inner(**change):
    return {"inner": {"count": 3} | change, "kind": "a"}


def test_what_is_written_is_read_again():
    assert Outer.from_json(OUTER.to_bytes(), "f", "do") == OUTER
    assert Outer.from_json(json.loads(OUTER.to_bytes()), "f", "do") == OUTER


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (inner(count=-1), "inner.count -1: input should be greater than or equal to 0"),
        (inner(count=True), "inner.count True: input should be a valid integer"),
        (inner(count="3"), "inner.count '3': input should be a valid integer"),
        (inner(sizes=[1, "x"]), "inner.sizes.1 'x': input should be a valid number"),
        (inner(more=1), "inner.more: unexpected keyword argument"),
        ({"inner": {"count": 3}}, "kind: field required"),
        ({"inner": {"count": 3}, "kind": "c"}, "kind 'c': input should be 'a' or 'b'"),
        ([], "input should be an object"),
    ],
)
def test_a_fault_is_one_line_that_names_file_field_value_and_remedy(content, fault):
    with pytest.raises(RaffectError) as caught:
        Outer.from_json(json.dumps(content).encode(), "run/head.json", "train again")
    line = str(caught.value)
    assert line.startswith("run/head.json: damaged, ")
    assert line.endswith("; train again")
    assert fault in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 50_000],
    ids=["empty", "cut", "bytes", "deep", "deep-objects"],
)
def test_what_is_not_json_is_one_line(content):
    with pytest.raises(RaffectError, match="f: damaged, "):
        Outer.from_json(content, "f", "do")
    with pytest.raises(RaffectError, match="f: damaged, "):
        parse_object(content, "f", "do")


def test_a_long_value_is_cut():
    with pytest.raises(RaffectError) as caught:
        Outer.from_json({"inner": {"count": 1}, "kind": "x" * 10_000}, "f", "do")
    assert len(str(caught.value)) < 200
