# SPDX-License-Identifier: Apache-2.0
from tests.integration.lab.conftest import lab as lab  # noqa: PLC0414 - a fixture for this folder too
from tests.integration.lab.conftest import shared_lab as shared_lab  # noqa: PLC0414
