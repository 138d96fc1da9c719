# SPDX-License-Identifier: Apache-2.0
"""Bytes of all kinds for every request type and for the gateway; `make security` sends ten times as many."""

from __future__ import annotations

import logging
import os

import pytest
from tests.security.fuzz.run import everything, troubles

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

log = logging.getLogger(__name__)

_SEED = int(os.environ.get("SEED", "1"))
_PER_METHOD, _OF_GATEWAY, _AT_LEAST = 165, 2000, 10_000


async def test_no_bytes_crash_hang_or_fill_a_service_or_make_it_fail_out_of_order():
    results = await everything(_PER_METHOD, _OF_GATEWAY, _SEED, log.info)
    found = troubles(results)
    assert not found, f"SEED={_SEED}: " + "\n".join(found[:5])[-6000:]
    assert sum(result.inputs for result in results) >= _AT_LEAST
    answered = {name for result in results for outcome in result.outcomes for name in outcome.answers}
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= answered, "the inputs get somewhere"
