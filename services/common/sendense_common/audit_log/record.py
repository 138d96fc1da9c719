# SPDX-License-Identifier: Apache-2.0
"""One record: its fields, its hash, its line in the file."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sendense_common.keys import canonical

Outcome = Literal["begun", "done", "refused", "failed"]
"""begun: another record has its end; refused: it was not permitted; failed: it was, and did not work."""

OUTCOMES: tuple[Outcome, ...] = ("begun", "done", "refused", "failed")
GENESIS = bytes(32)
"""What the first record has in the place of the hash before it."""

_PURPOSE = "sendense audit record 1"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# Years that every time zone can show.
_END_US = 253_370_764_800_000_000
_MICROSECOND = datetime.timedelta(microseconds=1)
_FIELDS = frozenset(
    {"sequence", "time", "service", "actor", "act", "subject", "outcome", "facts", "previous", "hash"}
)


@dataclass(frozen=True)
class Record:
    """Who did what, when, to what, and how it ended."""

    sequence: int
    """1 for the first of a log, then without gaps."""
    previous: bytes
    """Hash of the record before; `GENESIS` for the first."""
    time_us: int
    """Microseconds since 1970, by the service's clock. The order is by sequence: clocks step."""
    service: str
    """Whose log it is: "hub", "credentials", "agent:<site>"."""
    actor: str
    """As "local:<uid>", "token:<name>", "certificate:<name>", "agent:<site>", "system:<service>";
    "unproven:<site>" for who only says so."""
    act: str
    """One of `catalogue.ACTS`."""
    subject: str
    """What it was done to."""
    outcome: Outcome
    facts: Mapping[str, str]
    """More, by name."""
    hash: bytes = b""
    """As stored; see `digest`."""

    def digest(self) -> bytes:
        """SHA-256 of every field before it, in one unmistakable form."""
        flat = [text for name in sorted(self.facts) for text in (name, self.facts[name])]
        data = canonical(
            _PURPOSE,
            self.sequence,
            self.previous,
            self.time_us,
            self.service,
            self.actor,
            self.act,
            self.subject,
            self.outcome,
            len(self.facts),
            *flat,
        )
        return hashlib.sha256(data).digest()

    def to_line(self) -> bytes:
        """As JSON, with the line's end."""
        fields = {
            "sequence": self.sequence,
            "time": time_text(self.time_us),
            "service": self.service,
            "actor": self.actor,
            "act": self.act,
            "subject": self.subject,
            "outcome": self.outcome,
            "facts": dict(self.facts),
            "previous": self.previous.hex(),
            "hash": self.hash.hex(),
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """Reads a line; whether its hash is right is another question.

        Raises:
            ValueError: it is no record.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict) or fields.keys() != _FIELDS:
            raise ValueError("not the fields of a record")
        sequence, facts = fields["sequence"], fields["facts"]
        texts = [fields[name] for name in ("service", "actor", "act", "subject", "time", "previous", "hash")]
        if (
            type(sequence) is not int
            or not 0 < sequence < 1 << 62
            or not isinstance(facts, dict)
            or fields["outcome"] not in OUTCOMES
            or not all(isinstance(text, str) for text in [*texts, *facts.values()])
        ):
            raise ValueError("a field is not of its kind")
        for text in [*texts, *facts, *facts.values()]:
            text.encode()  # half of a surrogate pair has no hash, and cannot be passed on
        moment = datetime.datetime.fromisoformat(fields["time"])
        if moment.tzinfo is None:
            raise ValueError("a time without its zone")
        return cls(
            sequence=sequence,
            previous=bytes.fromhex(fields["previous"]),
            time_us=checked_time((moment - _EPOCH) // _MICROSECOND),
            service=fields["service"],
            actor=fields["actor"],
            act=fields["act"],
            subject=fields["subject"],
            outcome=fields["outcome"],
            facts=facts,
            hash=bytes.fromhex(fields["hash"]),
        )


def checked_time(time_us: int) -> int:
    """The same.

    Raises:
        ValueError: it is before 1970, or after 9998.
    """
    if not 0 <= time_us < _END_US:
        raise ValueError("the clock is not between the years 1970 and 9998")
    return time_us


def time_text(time_us: int) -> str:
    """2026-11-24T17:03:05.000123Z.

    Raises:
        ValueError: see `checked_time`.
    """
    moment = _EPOCH + checked_time(time_us) * _MICROSECOND
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
