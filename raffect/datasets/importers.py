"""The importers: one function a data set; a new one is a module beside this one and a line here.

Its name is also a choice of ``--dataset`` in `raffect.config.PrepareConfig`.
"""

from __future__ import annotations

from collections.abc import Callable

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.importer import import_affwild2
from raffect.datasets.folder import import_folder
from raffect.datasets.imported import Imported
from raffect.datasets.table import import_table

IMPORTERS: dict[str, Callable[[PrepareConfig], Imported]] = {
    "affwild2": import_affwild2,
    "table": import_table,
    "folder": import_folder,
}
"""Importers by their name for ``--dataset``."""
