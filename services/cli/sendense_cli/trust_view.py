# SPDX-License-Identifier: Apache-2.0
"""Whether changed block tracking of a VM is trusted, on the screen."""

from __future__ import annotations

import shlex

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sendense.hub.v1 import trust_service_pb2 as pb
from sendense_cli import words
from sendense_cli.session import table

_SHOWN = 10
_TRUSTED = {True: Text("yes", style="green"), False: Text("NO", style="red")}


def summary(trust: pb.MachineTrust) -> Group:
    """All there is to know."""
    parts: list[Text | Table] = [Text.assemble((trust.vm_name, "bold"), f" at {trust.vcenter_name}")]
    if not trust.disks:
        return Group(*parts, Text("no backup of it is complete yet"))
    parts += [Text(""), _disks(trust)]
    if any(not disk.trusted for disk in trust.disks):
        parts += [Text(""), Text(_what_to_do(trust.vm_name), style="yellow")]
    if trust.events:
        parts += [Text(""), _events(trust)]
    if trust.audits:
        parts += [Text(""), _audits(trust)]
    return Group(*parts)


def _what_to_do(vm: str) -> str:
    vm = shlex.quote(vm)
    return (
        "A disk that is not trusted is read whole by each backup and compared with its last point. To end "
        f"that, have tracking begin anew: `sendense vm trust {vm} --reset --yes`; or, after a backup that "
        f"has read it whole, take it for right again: `sendense vm trust {vm} --accept`."
    )


def _disks(trust: pb.MachineTrust) -> Table:
    made = table(
        ["KEY", "DISK", "TRUSTED", "SINCE", "AUDITED", "DIFFERED"], [], right=["AUDITED", "DIFFERED"]
    )
    for disk in trust.disks:
        made.add_row(
            str(disk.key), disk.label, _TRUSTED[disk.trusted], words.moment(disk.since_time),
            words.size(disk.audited_bytes), str(disk.audit_mismatches),
        )  # fmt: skip
    return made


def _events(trust: pb.MachineTrust) -> Table:
    rows = [
        [words.moment(each.time), each.kind.replace("_", " "), words.short(each.job_id) or "-", each.message]
        for each in trust.events[:_SHOWN]
    ]
    return table(["WHEN", "WHAT", "JOB", ""], rows)


def _audits(trust: pb.MachineTrust) -> Table:
    rows = [
        [words.moment(each.time), words.short(each.job_id), str(each.disk_key),
         words.size(each.audited_bytes), str(each.mismatches)]
        for each in trust.audits[:_SHOWN]
    ]  # fmt: skip
    return table(["AUDIT", "JOB", "KEY", "READ", "DIFFERED"], rows, right=["READ", "DIFFERED"])
