# SPDX-License-Identifier: Apache-2.0
"""The API's port for operators: whether it is open, who may come in, and what is wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sendense.hub.v1 import system_service_pb2 as pb
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.rpc.roles import role_name
from sendense_hub.catalog.operators import Operator
from sendense_hub.domain.times import now_us
from sendense_hub.rpc.admission import Admission

log = logging.getLogger(__name__)

_SOON = timedelta(days=14)
_LISTENER, _CERTIFICATE, _OPERATORS = "api.listener", "api.certificate", "api.operators"


class Door:
    """Of one hub."""

    def __init__(self, listener: rpc.Listener | None, admission: Admission) -> None:
        self._listener = listener
        self.admission = admission
        self._endpoint = ""

    @contextlib.asynccontextmanager
    async def open(self, services: Sequence[rpc.Service], endpoint_file: Path) -> AsyncIterator[None]:
        """Serves during the block; the file says where. Without a listener it does nothing.

        Raises:
            SendenseError: LISTENER_REFUSED.
        """
        endpoint_file.unlink(missing_ok=True)
        if self._listener is None:
            yield
            return
        async with rpc.serve_operators(self._listener, services, self.admission.identify) as endpoint:
            self._endpoint = endpoint
            endpoint_file.write_text(endpoint + "\n")
            log.info("operators connect to %s", endpoint)
            try:
                yield
            finally:
                endpoint_file.unlink(missing_ok=True)

    async def checks(self) -> list[pb.Check]:
        """For doctor."""
        if self._listener is None:
            text = "only on the hub's own unix socket, for its own user (--api-listen opens a port)"
            return [_check(_LISTENER, pb.CHECK_STATUS_OK, text)]
        tls = self._listener.tls
        shown = "TLS 1.3" if tls else "no TLS, from this host alone"
        if tls and tls.client_ca:
            shown += ", a client certificate"
        made = [_check(_LISTENER, pb.CHECK_STATUS_OK, f"operators connect to {self._endpoint} with {shown}")]
        if tls:
            made.append(await asyncio.to_thread(_certificate, tls))
        made.append(self._operators())
        return made

    def _operators(self) -> pb.Check:
        """How many may come in, and whose token ends soon."""
        now = now_us()
        valid = [
            each for each in self.admission.all() if each.expire_time_us is None or each.expire_time_us > now
        ]
        if not valid:
            return _check(
                _OPERATORS,
                pb.CHECK_STATUS_WARNING,
                "nobody may come in there",
                "Make a token: `sendense operator token create NAME --role viewer`.",
            )
        counts = Counter(role_name(each.role) for each in valid)
        text = ", ".join(f"{count} {role}" for role, count in sorted(counts.items()))
        ending = sorted(each.actor for each in valid if _ends_soon(each, now))
        if ending:
            return _check(
                _OPERATORS,
                pb.CHECK_STATUS_WARNING,
                f"{text}; these expire soon: {', '.join(ending)}",
                "Revoke them, `sendense operator token revoke NAME`, and make new ones: "
                "`sendense operator token create NAME --role viewer`.",
            )
        return _check(_OPERATORS, pb.CHECK_STATUS_OK, text)


def _ends_soon(operator: Operator, now_us: int) -> bool:
    """Of a token for a day, in its last hours."""
    if operator.expire_time_us is None:
        return False
    soon_us = int(_SOON.total_seconds()) * 1_000_000
    whole_us = operator.expire_time_us - operator.create_time_us
    return operator.expire_time_us - now_us < min(soon_us, whole_us // 4)


def _certificate(tls: rpc.TlsFiles) -> pb.Check:
    """Of the file: what it says is in use from the next connection on."""
    try:
        until = rpc.valid_until(tls)
    except SendenseError as error:
        return _check(_CERTIFICATE, pb.CHECK_STATUS_ERROR, error.message, error.remedy)
    text = f"{tls.certificate} is valid until {until:%Y-%m-%d %H:%M UTC}"
    left = until - datetime.now(UTC)
    remedy = "Put a new one in its place, and its key; the hub reads them again by itself."
    if left < timedelta():
        return _check(_CERTIFICATE, pb.CHECK_STATUS_ERROR, text, remedy)
    if left < _SOON:
        return _check(_CERTIFICATE, pb.CHECK_STATUS_WARNING, text, remedy)
    return _check(_CERTIFICATE, pb.CHECK_STATUS_OK, text)


def _check(name: str, status: pb.CheckStatus.ValueType, finding: str, remedy: str = "") -> pb.Check:
    return pb.Check(name=name, status=status, finding=finding, remedy=remedy)
