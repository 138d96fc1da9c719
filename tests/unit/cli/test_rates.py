# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import rates
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MiB/s", 20 << 20),
        ("20 mib/s", 20 << 20),
        ("512KiB", 512 << 10),
        ("1.5GiB/s", 3 << 29),
        ("none", 0),
        ("None", 0),
    ],
)
def test_rates_as_people_write_them(text: str, rate: int) -> None:
    assert rates.bytes_per_second(text) == rate


@pytest.mark.parametrize("text", ["", "20", "20Mbit/s", "20MB/s", "-1MiB/s", "0MiB/s", "1e3MiB", "٣MiB/s"])
def test_what_is_no_rate_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(SendenseError) as raised:
        rates.bytes_per_second(text)
    assert raised.value.reason == Reason.REASON_INVALID_REQUEST
    assert "20MiB/s" in raised.value.remedy
