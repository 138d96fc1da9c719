# SPDX-License-Identifier: Apache-2.0
"""Names of things in a vCenter, as people see them there."""

from __future__ import annotations

import re

_ESCAPED = re.compile(r"%(?:2f|5c|25)", re.IGNORECASE)


def shown(name: str) -> str:
    """A name as the vSphere client shows it: the API escapes slashes, backslashes and `%`, nothing else."""
    return _ESCAPED.sub(lambda found: chr(int(found[0][1:], 16)), name)
