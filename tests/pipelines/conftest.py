"""The bank of texts."""

import pytest

from tests.helpers.texts import text_bank

texts = pytest.fixture(scope="package")(text_bank)
