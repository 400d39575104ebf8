"""The importers: one module a data set; a new one is a module in ``sets/`` and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raffect.config import PrepareConfig
from raffect.datasets.affwild2 import importer as affwild2
from raffect.datasets.affwild2.annotations import IMAGES
from raffect.datasets.imported import Imported
from raffect.datasets.root import Root, scan_root
from raffect.datasets.sets import afew, affectnet, dfew, disfa, ferv39k, mafw, rafdb
from raffect.datasets.sets.folder import import_folder
from raffect.datasets.sets.table import import_table
from raffect.errors import RaffectError, require


@dataclass(frozen=True)
class Importer:
    """A data set as it comes.

    Attributes:
        read: Makes `Imported` of it, below ``--root`` if no root is handed in.
        recognise: Why a root is this data set's; empty if it is not.
    """

    read: Callable[[PrepareConfig, Root | None], Imported]
    recognise: Callable[[Root], str]


BY_ROOT = {
    "affwild2": Importer(affwild2.import_affwild2, affwild2.recognise),
    "dfew": Importer(dfew.import_dfew, dfew.recognise),
    "ferv39k": Importer(ferv39k.import_ferv39k, ferv39k.recognise),
    "mafw": Importer(mafw.import_mafw, mafw.recognise),
    "afew": Importer(afew.import_afew, afew.recognise),
    "affectnet": Importer(affectnet.import_affectnet, affectnet.recognise),
    "rafdb": Importer(rafdb.import_rafdb, rafdb.recognise),
    "disfa": Importer(disfa.import_disfa, disfa.recognise),
}
"""Data sets by their name for ``--dataset``."""

BY_FLAGS: dict[str, Callable[[PrepareConfig], Imported]] = {
    "table": import_table,
    "folder": import_folder,
}
"""Users' own data."""


def import_dataset(config: PrepareConfig) -> Imported:
    """Read the data set that a configuration names, or that its root is recognised as.

    Raises:
        RaffectError: If there is no such data set, or a root is not recognised, or as several;
            and what importers raise.
    """
    known = (*BY_ROOT, *BY_FLAGS, "auto")
    require(
        config.dataset in known,
        f"--dataset {config.dataset}: expected one of {', '.join(known)}",
    )
    if config.dataset in BY_FLAGS:
        return BY_FLAGS[config.dataset](config)
    if config.dataset != "auto":
        return BY_ROOT[config.dataset].read(config, None)

    # Which one a root is, and why
    assert config.root is not None  # PrepareConfig has checked it
    root = scan_root(config.root, skip=IMAGES)
    reasons = {name: importer.recognise(root) for name, importer in BY_ROOT.items()}
    found = {name: reason for name, reason in reasons.items() if reason}
    if len(found) != 1:
        what = "; ".join(f"{name} by {reason}" for name, reason in found.items())
        raise RaffectError(
            f"--root {config.root}: {'several data sets, ' + what if found else 'not recognised'}; "
            f"name it with --dataset {' | '.join(found or BY_ROOT)}, "
            "or use --dataset table or folder"
        )
    ((name, reason),) = found.items()
    imported = BY_ROOT[name].read(config, root)
    imported.lines.insert(0, f"recognised: {name}, by {reason}")
    return imported
