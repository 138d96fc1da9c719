# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.enrolment.kit import Centre
from tests.integration.enrolment.kit import centre as centre_in


@pytest.fixture
async def centre(short_tmp: Path) -> AsyncIterator[Centre]:
    async with centre_in(short_tmp) as made:
        yield made
