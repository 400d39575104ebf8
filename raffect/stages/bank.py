"""`raffect bank`: look at a bank, prove it, and hand its features to other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.config import BankExportConfig, BankInfoConfig, BankVerifyConfig
from raffect.data.atomic import atomic_path
from raffect.data.bank import Bank, Commit
from raffect.data.features import read_shard_features
from raffect.data.manifest import read_manifest
from raffect.data.storage import list_sizes, read_parquet
from raffect.data.verify import verify, withdraw
from raffect.errors import RaffectError
from raffect.stages.progress import Progress, format_bytes

_SHOWN = 20


def describe_bank(bank: Bank) -> dict[str, Any]:
    """What a bank holds, as plain JSON values."""
    records = list_sizes(bank.path / "commits")
    plan, commits, identity = bank.plan, bank.read_commits(), bank.read_identity()
    return {
        "bank": str(bank.path),
        "identity": asdict(identity) if identity else None,
        "planned": len(plan.table),
        "rows": sum(commit.rows for commit in commits.values()),
        "rejects": sum(commit.rejects for commit in commits.values()),
        "shards": {"planned": plan.num_shards, "committed": len(commits), "rows": plan.shard_rows},
        "videos": len(plan.table["video"].unique()),
        "bytes": sum(size for commit in commits.values() for size, _ in commit.files.values()),
        "digest": bank.digest() if identity else None,
        "broken": len(records.keys() - {bank.commit_path(shard).name for shard in commits}),
        "runs": len(list_sizes(bank.path / "runs")),
    }


def info(config: BankInfoConfig) -> list[str]:
    """A bank for people, or as JSON."""
    facts = describe_bank(Bank(config.bank).require())
    if config.json:
        return [json.dumps(facts, indent=1)]
    shards, identity = facts["shards"], facts["identity"]
    lines = [
        f"bank: {facts['bank']}",
        f"rows: {facts['rows']:,} features + {facts['rejects']:,} rejects of {facts['planned']:,} planned frames in {facts['videos']:,} videos, {format_bytes(facts['bytes'])}",
        f"shards: {shards['committed']:,} of {shards['planned']:,} committed, up to {shards['rows']:,} rows each; {facts['runs']} extract run(s)",
    ]
    if facts["broken"]:
        lines.append(f"broken: {facts['broken']} committed shard(s) lack a file or have another size; see `raffect bank verify`")
    if identity is None:
        return [*lines, "encoder: none yet; nothing was extracted"]
    preprocess = identity["preprocess"]
    return [
        *lines,
        f"encoder: {identity['model']}, weights {identity['weights']} ({identity['weights_sha256'][:12]}), {identity['precision']}, {identity['dim']}-d, raw",
        f"preprocess: {', '.join(f'{key} {value}' for key, value in preprocess.items())}",
        f"digest: {facts['digest']}",
    ] + ([f"stamp: {identity['stamp']}"] if identity["stamp"] else [])


def check(config: BankVerifyConfig) -> tuple[list[str], bool]:
    """Verify a bank.

    Returns:
        The report, and whether the bank is sound and complete.
    """
    bank = Bank(config.bank).require()
    manifest = read_manifest(config.manifest) if config.manifest else None
    with Progress("verify", len(bank.plan.table), "rows") as progress:
        verdict = verify(bank, manifest, progress.advance)
    out = [f"damaged: shard {shard:06d} {what}" for shard, what in list(verdict.damaged.items())[:_SHOWN]]
    if len(verdict.damaged) > _SHOWN:
        out.append(f"damaged: and {len(verdict.damaged) - _SHOWN} more shards")
    out += [f"problem: {what}" for what in verdict.problems]
    if verdict.leftovers:
        out.append(f"leftovers: {len(verdict.leftovers)} unfinished file(s) of killed runs, harmless; --repair deletes them")
    out.append(
        f"rows {verdict.rows:,} + rejects {verdict.rejects:,} + not extracted {verdict.missing:,} + damaged {_damaged_rows(bank, verdict.damaged):,} = planned {verdict.planned:,}"
    )
    if config.repair and (verdict.damaged or verdict.leftovers):
        withdrawn = withdraw(bank, verdict.damaged)
        for path in verdict.leftovers:
            path.unlink(missing_ok=True)
        out.append(f"repaired: {len(withdrawn)} shard(s) withdrawn; run `raffect extract` to encode them again")
    if config.retry_rejects:
        if withdrawn := withdraw(bank, [shard for shard, commit in bank.read_commits().items() if commit.rejects]):
            out.append(f"withdrawn: {len(withdrawn)} shard(s) with rejects; run `raffect extract` to read their frames again")
            return out, False
        out.append("withdrawn: nothing, no frame was rejected")
    if verdict.complete:
        rejects = f", {verdict.rejects:,} of them as rejects without a feature" if verdict.rejects else ""
        out.append(f"sound and complete: every byte is as committed, every planned frame is there once{rejects}")
    elif verdict.sound:
        out.append("sound but not complete; run `raffect extract` again")
    elif not verdict.damaged:
        out.append("not right, see above; no shard is damaged and --repair cannot help")
    elif not config.repair:
        out.append("damaged; `raffect bank verify --repair`, then `raffect extract`, mends shards")
    return out, verdict.complete


def _damaged_rows(bank: Bank, damaged: dict[int, str]) -> int:
    return int(np.diff(bank.plan.offsets)[list(damaged)].sum())


def export(config: BankExportConfig) -> list[str]:
    """Write a bank's features as ``.npy`` with a key table, or as Parquet with float16 lists."""
    bank = Bank(config.bank).require()
    identity, commits = bank.read_identity(), bank.read_commits()
    if identity is None or not commits:
        raise RaffectError(f"{bank.path}: nothing extracted yet; run `raffect extract` on it")
    if config.out.is_dir() and any(config.out.iterdir()):
        raise RaffectError(f"--out {config.out} is not empty; an export does not mix with other files")
    verdict = verify(bank)  # reads every byte, so it comes after what costs nothing
    if not verdict.sound:
        raise RaffectError(f"{bank.path}: damaged, nothing exported; see `raffect bank verify`")
    rows = sum(commit.rows for commit in commits.values())  # what a running extract commits from now on is not exported
    config.out.mkdir(parents=True, exist_ok=True)
    with Progress("export", rows, "rows") as progress:
        if config.format == "npy":
            _export_npy(bank, commits, rows, identity.dim, config, progress)
        else:
            _export_lists(bank, commits, identity.dim, config, progress)
    (config.out / "identity.json").write_text(json.dumps(asdict(identity), indent=1) + "\n")
    what = (
        "features.npy and keys.parquet, row k of one is row k of the other"
        if config.format == "npy"
        else f"features/ with {len(commits)} Parquet file(s) that have a float16 list column"
    )
    partial = f" ({verdict.rejects:,} rejects and {verdict.missing:,} frames that are not extracted yet are not among them)" if rows < verdict.planned else ""
    return [f"exported {rows:,} rows of {verdict.planned:,} planned frames{partial} to {config.out}: {what}"] + ([f"stamp: {identity.stamp}"] if identity.stamp else [])


def _export_npy(bank: Bank, commits: Mapping[int, Commit], rows: int, dim: int, config: BankExportConfig, progress: Progress) -> None:
    keys = []
    with atomic_path(config.out / "features.npy") as temporary:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(rows, dim))
        start = 0
        for shard, commit in commits.items():
            features = read_shard_features(bank, shard, commit.sha256, dim)
            out[start : start + len(features)] = features
            keys.append(read_parquet(bank.shard_path(shard), ["video", "frame"]))
            start += len(features)
            progress.advance(len(features))
        out.flush()
    with atomic_path(config.out / "keys.parquet") as temporary:
        pq.write_table(pa.concat_tables(keys).replace_schema_metadata(None), temporary)


def _export_lists(bank: Bank, commits: Mapping[int, Commit], dim: int, config: BankExportConfig, progress: Progress) -> None:
    for shard, commit in commits.items():
        table = read_parquet(bank.shard_path(shard)).replace_schema_metadata(None)
        flat = pa.array(read_shard_features(bank, shard, commit.sha256, dim).reshape(-1))
        table = table.set_column(2, "feature", pa.FixedSizeListArray.from_arrays(flat, dim))
        with atomic_path(config.out / "features" / f"{shard:06d}.parquet") as temporary:
            pq.write_table(table, temporary, compression="none")
        progress.advance(len(table))
