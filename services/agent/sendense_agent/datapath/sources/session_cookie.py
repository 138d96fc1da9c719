# SPDX-License-Identifier: Apache-2.0
"""The cookie of a session that can be renewed while nbdkit reads, in memory that nbdkit inherits.

nbdkit's curl plugin runs a shell script for its cookie, and again when it gets old. The script is a command
line and may hold no secret: it reads the descriptor, whose content changes with the session.
"""

from __future__ import annotations

import os

# nbdkit (1.22 to 1.32 at least) makes a file in /tmp for the errors of each run, and leaves it there.
_SCRIPT = (
    'read -r cookie < /proc/self/fd/{descriptor}; printf "%s\\n" "$cookie"; '
    "left=$(readlink /proc/$$/fd/2); "
    'case "$left" in /tmp/errors??????) rm -f "$left";; esac'
)


class SessionCookie:
    """One line; to be closed."""

    def __init__(self, value: str) -> None:
        self.descriptor = os.memfd_create("cookie")
        """For the child to inherit."""
        self.set(value)

    @property
    def script(self) -> str:
        """For `cookie-script=`; prints the cookie as it is when it runs."""
        return _SCRIPT.format(descriptor=self.descriptor)

    def set(self, value: str) -> None:
        """From now on."""
        line = value.encode() + b"\n"
        os.pwrite(self.descriptor, line, 0)
        os.ftruncate(self.descriptor, len(line))

    def close(self) -> None:
        """Forgets it."""
        os.close(self.descriptor)
