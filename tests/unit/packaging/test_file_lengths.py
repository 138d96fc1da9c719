# SPDX-License-Identifier: Apache-2.0
"""A file is one idea: one of the product's with more than 400 lines has a second."""

from __future__ import annotations

import pytest
from tests.unit.packaging.containers import ROOT

pytestmark = pytest.mark.unit

MOST_LINES = 400
PRODUCT = ["agent", "cli", "common", "credentials", "hub"]


def test_no_file_of_the_product_has_two_ideas():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for service in PRODUCT
        for path in (ROOT / "services" / service).rglob("*.py")
    }
    assert len(lines) > 200
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
