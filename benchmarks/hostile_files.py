"""Hostile variants of the files that raffect reads, each decided by a random number generator."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raffect.datasets.targets import SUFFIX

DEEP = 5000
"""Brackets that open before any closes."""
_DOUBLINGS = 26
"""Of one row of a Parquet file: 67 million, which take gigabytes in memory and little on disk."""

_TOKENS = (
    *("Infinity", "-Infinity", "NaN", "1e400", "-1", "0", "64.0", '"64"', "null", "true", "[]"),
    *(
        "{}",
        '""',
        "9" * 400,
        "1e308",
        "9223372036854775808",
        "4294967296",
        '"\\ud800"',
        '"\\u0000"',
    ),
    *('"../../x"', '"/etc/passwd"', "[[1]]", '{"a":{"a":1}}', "[null]", '"a\\nb"'),
    *("[" * 900 + "]" * 900, "[" * DEEP + "]" * DEEP, '{"a":' * 900 + "1" + "}" * 900),
)
"""JSON and TOML values that stand where others are expected."""

_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e300, 10**18, 10**9, 2**31, 2**63, "", "x", "1", "\0", "a\nb"),
    *([], {}, [1], ["x"], [[]], {"x": 1}, [None], "../../x", "x" * 10_000, [0] * 1000),
)
"""The same as objects, for a place in a tree of them."""


def mutate(rng: random.Random, name: str, content: bytes) -> bytes:
    """A hostile variant of a file: of its format three times in four, else of its bytes."""
    kinds: dict[str, Callable[[random.Random, bytes], bytes]] = {
        ".json": _mutate_json,
        ".toml": _mutate_toml,
        ".parquet": _mutate_parquet,
        ".safetensors": _mutate_safetensors,
        ".txt": _mutate_lines,
        ".csv": _mutate_lines,
    }
    change = kinds.get(Path(name).suffix)
    if change is not None and rng.random() < 0.75:
        return change(rng, content)
    return _mutate_bytes(rng, content)


def _mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut, doubled or replaced."""
    how = rng.randrange(8)
    if how == 0:
        return content[: rng.randrange(len(content) + 1)]
    if how == 1:
        return rng.choice([b"", b"\0" * 5000, rng.randbytes(1000), b"\xff" * 64, content * 2])
    if how == 2:
        at = rng.randrange(len(content) + 1)
        return content[:at] + rng.randbytes(rng.choice([1, 8, 100])) + content[at:]
    changed = bytearray(content)
    # Ends hold what a format says of itself
    span = min(len(changed), rng.choice([64, 600, 1 << 30, 1 << 30]))
    start = rng.choice([0, len(changed) - span])
    for _ in range(rng.choice([1, 1, 3, 30])):
        changed[start + rng.randrange(span)] = rng.choice([0, 0x7F, 0xFF, rng.randrange(256)])
    return bytes(changed)


def _mutate_json(rng: random.Random, content: bytes) -> bytes:
    """A token or a branch replaced, dropped, renamed or copied to another place."""
    if rng.random() < 0.4:
        return _replace_token(rng, content, r'[-+0-9.eE]+|"[^"]*"|true|false|null')
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2])):
        _mutate_tree(rng, tree)
    return json.dumps(tree, indent=1).encode()


def _mutate_tree(rng: random.Random, tree: Any) -> None:
    places = list(_walk(tree))
    if not places:
        return
    holder, key = rng.choice(places)
    how = rng.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[rng.choice(["x", "", "-1", "cv", "last", "format", "9" * 30])] = holder.pop(key)
    elif how == 2:
        other, name = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif how == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = rng.choice([-1, 2, 1000]) * holder[key] + rng.choice([0, 1, 0.5])
    else:
        holder[key] = rng.choice(_VALUES)


def _walk(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    places = []
    for key in keys:
        places += [(tree, key), *_walk(tree[key])]
    return places


def _replace_token(rng: random.Random, content: bytes, pattern: str) -> bytes:
    text = content.decode("utf-8", "replace")
    spots = list(re.finditer(pattern, text))
    if not spots:
        return content
    spot = rng.choice(spots)
    new = rng.choice(_TOKENS) if rng.random() < 0.9 else rng.choice(["", ",", "}", "\\", "\x01"])
    return (text[: spot.start()] + new + text[spot.end() :]).encode("utf-8", "surrogatepass")


def _mutate_toml(rng: random.Random, content: bytes) -> bytes:
    """A value replaced, a line dropped, doubled or added."""
    lines = content.decode().splitlines()
    at, how = rng.randrange(len(lines)), rng.randrange(6)
    if how < 3:
        return _replace_token(rng, content, r"(?<== ).+")
    if how == 3:
        del lines[at]
    elif how == 4:
        lines.insert(at, rng.choice(lines))
    else:
        new = ["[loss]", "[head.x]", "[[loss]]", "a.b.c = 1", "x = 1", "loss = 3", "= 1", '"" = 1']
        new += ["seed = 1e400", "epochs = inf", "space = 3", "space = [1]", "task = 1979-05-27"]
        lines.insert(at, rng.choice([*new, f"x = {'[' * DEEP}{']' * DEEP}", ".".join("a" * DEEP)]))
    return "\n".join(lines).encode()


def _mutate_lines(rng: random.Random, content: bytes) -> bytes:
    """Lines of text changed."""
    lines, how = content.split(b"\n"), rng.randrange(7)
    at = rng.randrange(len(lines))
    odd = [b"nan", b"inf", b"1e999", b"9" * 5000, b"-0", b"", b"\0", b"\xff\xfe", b"a" * 100_000]
    if how == 0:
        lines[at] = rng.choice([*odd, b",".join([b"1"] * 5000), b'"'])
    elif how == 1:
        lines[0] = rng.choice([b"", lines[0] * 2, b"\xef\xbb\xbf" + lines[0], lines[at], b"\xff"])
    elif how == 2:
        lines = [*lines[:at], *[lines[at]] * 500, *lines[at:]]
    elif how == 3:
        del lines[at]
    elif how == 4:
        cells = lines[at].split(b",")
        cells[rng.randrange(len(cells))] = rng.choice(odd)
        lines[at] = b",".join(cells)
    elif how == 5:
        return content.decode("latin-1").encode(rng.choice(["utf-16", "utf-32"]))
    else:
        return rng.choice([b"\r", b"\r\n", b"\0", b";", b"\t"]).join(lines)
    return b"\n".join(lines)


def _mutate_parquet(rng: random.Random, content: bytes) -> bytes:
    """Columns of other types, empty cells, wrong rows, other metadata, text that is not UTF-8."""
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError):
        return content
    if rng.random() < 0.01 and len(content) < 10_000:  # of features it would be no small file
        return _unfold(content)
    how = rng.randrange(8)
    metadata = dict(table.schema.metadata or {})
    if how < 4 and table.num_columns:
        at = rng.randrange(table.num_columns)
        column = _odd_column(rng, table.column(at))
        table = table.set_column(at, table.column_names[at], column)
    elif how == 4:
        at = rng.randrange(table.num_columns)
        if rng.random() < 0.5:
            table = table.append_column(table.column_names[at], table.column(at))
        else:
            table = table.remove_column(at)
    elif how == 5:
        rows = rng.choice([0, 1, 2, 2])
        table = pa.concat_tables([table] * 2) if rows == 2 else table.slice(0, rows)
        order = list(range(len(table)))
        rng.shuffle(order)
        table = table.take(pa.array(order, pa.int64()))
    elif metadata:
        key = rng.choice(list(metadata))
        value = metadata[key]
        if value[:1] == b"{" and rng.random() < 0.8:
            metadata[key] = _mutate_json(rng, value)
        else:
            metadata[key] = rng.choice([b"", b"\xff\xfe", b"-1", b"0", b"9" * 5000, b"1e3", b"{}"])
        if rng.random() < 0.2:
            del metadata[key]
    return _to_parquet(table.replace_schema_metadata(metadata))


def _odd_column(rng: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """As many cells of another kind, or the same with other values."""
    count = len(column)
    if (how := rng.randrange(14)) < 2:
        kinds = (pa.int64(), pa.int8(), pa.float64(), pa.string(), pa.large_string(), pa.binary())
        try:
            return column.cast(rng.choice(kinds)).combine_chunks()
        except (pa.ArrowException, ValueError):
            how = 2
    made: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.nulls(count),
        lambda: pa.array([["x"]] * count),
        lambda: pa.array([{"a": 1}] * count),
        lambda: pa.array(range(count), pa.int64()),
        lambda: pa.array([float("nan")] * count),
        lambda: pa.array([float("inf")] * count, pa.float32()),
        lambda: pa.array(["1"] * count),
        lambda: _not_utf8(count),
        lambda: _not_utf8(count).dictionary_encode(),
        lambda: pa.array([True] * count),
        lambda: pa.array([0] * count, column.type) if _is_int(column.type) else pa.nulls(count),
        lambda: pa.array([*column.to_pylist()[:-1], None], column.type) if count else pa.nulls(0),
    )
    return made[how - 2]()


def _is_int(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind)


def _not_utf8(count: int) -> pa.Array:
    """A column of text that is not."""
    plain = pa.array([b"\xff\xfe"] * count, pa.binary())
    return pa.Array.from_buffers(pa.string(), count, plain.buffers())


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@functools.cache
def _unfold(content: bytes) -> bytes:
    """A small file of one row, millions of times."""
    table = pq.read_table(io.BytesIO(content)).slice(0, 1)
    for _ in range(20):
        table = pa.concat_tables([table, table]).combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([table] * (1 << _DOUBLINGS - 20)), sink, row_group_size=1 << 24)
    return sink.getvalue().to_pybytes()


def _mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Another header, with a length that fits."""
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size]
    if rng.random() < 0.7:
        tree = json.loads(header)
        about = tree.get("__metadata__", {}).get("raffect")
        if about is not None and rng.random() < 0.7:
            tree["__metadata__"]["raffect"] = _mutate_json(rng, about.encode()).decode()
        else:
            _mutate_tree(rng, tree)
        header = json.dumps(tree).encode()
    else:
        header = _replace_token(rng, header, r'[-+0-9.eE]+|"[^"]*"')
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


# Files whose hash stands in another: with a fitting hash the reader gets as far as their content


def agree(file: Path, root: Path) -> None:
    """Make the records that name a changed file agree with it."""
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if file.name == "head.safetensors":
        card = file.parent / "config.json"
        card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": sha256}))
    elif file.name.endswith(SUFFIX):
        path = file.with_name(file.name.removesuffix(SUFFIX) + ".parquet")
        table = pq.read_table(path)
        about = table.schema.metadata
        facts = json.loads(about[b"targets"]) | {"sha256": sha256}
        table = table.replace_schema_metadata(about | {b"targets": json.dumps(facts)})
        path.write_bytes(_to_parquet(table))
    elif file.parent.name == "statistics":
        for record in (root / "heads").glob("*.json"):
            head = json.loads(record.read_text())
            if (head["statistics"] or {}).get("name") == file.name:
                named = {"name": file.name, "sha256": sha256}
                record.write_text(json.dumps(head | {"statistics": named}))
    elif file.parent.name in ("shards", "rejects"):
        commit = file.parents[1] / "commits" / f"{file.name[:6]}.json"
        record = json.loads(commit.read_text())
        name = f"{file.parent.name}/{file.name}"
        if record.get("format", 1) != 1:
            name = f"{file.parent.name}/{file.name[:6]}-{sha256[:8]}.parquet"
            file.rename(file.parents[1] / name)
        files = {k: v for k, v in record["files"].items() if not k.startswith(file.parent.name)}
        record["files"] = files | {name: [len(content), sha256]}
        commit.write_text(json.dumps(record))
