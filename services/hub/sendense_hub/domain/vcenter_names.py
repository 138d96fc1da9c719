# SPDX-License-Identifier: Apache-2.0
"""Under which name the points of a vCenter are listed here, when they were made under another hub or name.

A vCenter is the same if its instance UUID is. Its name is what operators here call it.
"""

from __future__ import annotations

from collections.abc import Mapping


def name_here(vcenter_uuid: str, name_then: str, known: Mapping[str, str]) -> str:
    """The name for points of one vCenter: the one that it has here, else the one that it had.

    Args:
        vcenter_uuid: its instance UUID.
        name_then: what it was called when the point was made.
        known: instance UUIDs of the vCenters that are known here, by name; empty: it was not asked yet.
    """
    if known.get(name_then) in (vcenter_uuid, ""):
        return name_then
    return min((name for name, identity in known.items() if identity == vcenter_uuid), default=name_then)


def is_known(vcenter_uuid: str, name: str, known: Mapping[str, str]) -> bool:
    """Whether a vCenter here is it, or may be it for all that is known."""
    return known.get(name) in (vcenter_uuid, "")
