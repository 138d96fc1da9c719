# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.e2e.conftest import fresh_world as fresh_world  # noqa: PLC0414 - a fixture for this folder too
