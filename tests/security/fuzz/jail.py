# SPDX-License-Identifier: Apache-2.0
"""For a process that may be asked to write anywhere: a machine in which only one directory is kept.

Everything else can be read only, but for /tmp, where writing works and is forgotten. Root only. No network
either: unix sockets are reached by their paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_SCRIPT = """
kept=$1; shift
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/kept
mount --bind "$kept" /mnt/kept
mount -t overlay overlay -o lowerdir=/tmp,upperdir=/mnt/upper,workdir=/mnt/work /tmp
mount --bind /mnt/kept "$kept"
while read -r _ target kind _; do
  case $kind in proc|sysfs|devpts|mqueue|cgroup*|securityfs|binfmt_misc) continue ;; esac
  case $target in /tmp|/mnt*|"$kept") continue ;; esac
  mount -o remount,bind,ro "$target" 2>/dev/null || true
done < /proc/self/mounts
for forbidden in / /etc /var/tmp "$HOME"; do
  ! touch "$forbidden/.sendense-jail-$$" 2>/dev/null || { echo "$forbidden can be written to"; exit 99; }
done
exec "$@"
"""


def jailed(command: Sequence[str], kept: Path) -> list[str]:
    """`command` so that what it writes stays below `kept`."""
    return ["unshare", "--mount", "--net", "--", "sh", "-ec", _SCRIPT, "jail", str(kept), *command]
