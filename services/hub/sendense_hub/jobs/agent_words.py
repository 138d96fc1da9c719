# SPDX-License-Identifier: Apache-2.0
"""What an agent says of a failure, so far as a job keeps it."""

from __future__ import annotations

from itertools import islice

from sendense.common.v1.failure_pb2 import Failure
from sendense_common.errors import SendenseError
from sendense_hub.domain.cutting import cut

_WORDS_BYTES = 4096
_FACTS, _FACT_BYTES, _NAME_BYTES = 40, 1024, 100


def failure(said: Failure) -> SendenseError:
    """The error, with texts that have an end."""
    error = SendenseError.from_failure(said)
    error.message = cut(error.message, _WORDS_BYTES)
    error.remedy = cut(error.remedy, _WORDS_BYTES)
    facts = islice(error.metadata.items(), _FACTS)
    error.metadata = {cut(name, _NAME_BYTES): cut(fact, _FACT_BYTES) for name, fact in facts}
    return error
