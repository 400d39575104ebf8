"""Settings that all tests of extraction share."""

import pytest

from raffect.config import ExtractConfig
from tests.helpers.banks import TINY


@pytest.fixture(scope="package")
def config(prepared, tmp_path_factory) -> ExtractConfig:
    return ExtractConfig(
        manifest=prepared / "manifest.parquet",
        bank=tmp_path_factory.mktemp("bank") / "bank",
        encoder=TINY,
        shard_rows=100,
    )
