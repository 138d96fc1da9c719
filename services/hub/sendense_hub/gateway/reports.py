# SPDX-License-Identifier: Apache-2.0
"""What a gateway has refused, on its way to the audit log, which the API alone writes."""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from sendense.hub.v1.authorization_service_pb2 import ReportRefusalRequest
from sendense_common.errors import SendenseError
from sendense_hub.gateway.authority import Authority

log = logging.getLogger(__name__)

_WAITING = 256


class Reports:
    """Those that were not sent yet; the API may be away. What does not fit is counted."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[ReportRefusalRequest] = asyncio.Queue(_WAITING)
        self._left_out = 0

    def add(self, report: ReportRefusalRequest) -> None:
        """Returns at once."""
        report.left_out_count = self._left_out
        try:
            self._waiting.put_nowait(report)
            self._left_out = 0
        except asyncio.QueueFull:
            self._left_out += 1

    async def send_all(self, authority: Authority) -> NoReturn:
        """Goes on until it is cancelled."""
        while True:
            report = await self._waiting.get()
            try:
                await authority.report(report)
            except SendenseError as error:
                self._left_out += 1 + report.left_out_count
                log.warning("a refusal is missing in the audit log: %s", error)
