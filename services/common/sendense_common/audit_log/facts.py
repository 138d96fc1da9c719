# SPDX-License-Identifier: Apache-2.0
"""What may stand in a record: short printable text and numbers, and nothing that is named like a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ANYWHERE = frozenset(
    {"cookie", "passphrase", "passwd", "password", "plaintext", "private", "pwd", "secret", "ticket"}
)
# "key_id" and "token_name" only say which one.
_LAST = frozenset({"code", "key", "keys", "token", "credentials"})
_MOST_FACTS = 16
_LONGEST_CHARS = 256


def checked(facts: Mapping[str, object]) -> dict[str, str]:
    """The facts as text.

    Raises:
        ValueError: a name is none, or is that of a secret; there are too many.
        TypeError: a value is neither text nor a number: an object might show a secret.
    """
    if len(facts) > _MOST_FACTS:
        raise ValueError(f"a record has at most {_MOST_FACTS} facts")
    made = {}
    for name, value in facts.items():
        words = name.split("_")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a fact")
        if words[-1] in _LAST or not _ANYWHERE.isdisjoint(words):
            raise ValueError(f"a fact named {name!r} may be a secret: it does not belong into a log")
        if not isinstance(value, str | int | float):
            raise TypeError(f"the fact {name!r} must be text or a number, not {type(value).__name__}")
        made[name] = short(str(value))
    return made


def short(text: str) -> str:
    """Printable, and not longer than fits into a line: foreign words come here too."""
    cut = text if len(text) <= _LONGEST_CHARS else text[: _LONGEST_CHARS - 1] + "…"
    return "".join(each if each.isprintable() else "?" for each in cut)
