# SPDX-License-Identifier: Apache-2.0
"""Which protocol hub and agent speak, and what is said when they have none in common."""

from __future__ import annotations

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import protocol
from sendense_common.errors import SendenseError
from sendense_common.protocol import Protocols, agreed, check

pytestmark = pytest.mark.unit


def here(monkeypatch: pytest.MonkeyPatch, oldest: int, newest: int) -> None:
    monkeypatch.setattr(protocol, "HERE", Protocols(oldest, newest))


@pytest.mark.parametrize(
    ("hub", "agent", "number"),
    [
        ((1, 1), (0, 0), 1),
        ((1, 3), (0, 0), 1),
        ((1, 3), (1, 2), 2),
        ((2, 3), (1, 2), 2),
        ((1, 2), (2, 5), 2),
        ((1, 4), (2, 3), 3),
        ((2, 2), (1, 9), 2),
    ],
)
def test_the_newest_in_common_is_spoken(
    hub: tuple[int, int], agent: tuple[int, int], number: int, monkeypatch: pytest.MonkeyPatch
):
    here(monkeypatch, *hub)
    theirs = Protocols.said(*agent)
    assert agreed(theirs, site="paris", their_version="0.9") == number
    here(monkeypatch, theirs.oldest, theirs.newest)
    check(number)


@pytest.mark.parametrize(
    ("hub", "agent", "remedy"),
    [
        ((2, 3), (0, 0), "Upgrade the agent."),
        ((3, 4), (1, 2), "Upgrade the agent."),
        ((1, 2), (3, 4), "Upgrade the hub, with its credentials service."),
    ],
)
def test_with_none_in_common_both_versions_and_what_to_upgrade_are_said(
    hub: tuple[int, int], agent: tuple[int, int], remedy: str, monkeypatch: pytest.MonkeyPatch
):
    here(monkeypatch, *hub)
    theirs = Protocols.said(*agent)
    with pytest.raises(SendenseError) as refused:
        agreed(theirs, site="paris", their_version="0.9")
    error = refused.value
    assert (error.reason, error.retryable) == (Reason.REASON_VERSION_NOT_SUPPORTED, False)
    assert error.remedy == remedy
    assert error.metadata["agent_version"] == "0.9"
    for part in ("'paris' is version 0.9", f"protocol {theirs};", f"speaks {protocol.HERE}"):
        assert part in error.message


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [(0, "Upgrade the hub, with its credentials service."), (4, "Upgrade the agent.")],
)
def test_an_agent_refuses_what_it_does_not_speak(wanted: int, remedy: str, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch, 2, 3)
    with pytest.raises(SendenseError) as refused:
        check(wanted)
    assert (refused.value.reason, refused.value.remedy) == (Reason.REASON_VERSION_NOT_SUPPORTED, remedy)
