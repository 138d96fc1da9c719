# SPDX-License-Identifier: Apache-2.0
"""Who did what, through all services, as an operator sees and checks it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kit import MIB, PASSWORD, Lab, World, data

pytestmark = pytest.mark.e2e


def test_a_backup_is_recorded_by_all_services_and_a_changed_row_is_named(
    shared_world: World, shared_lab: Lab, tmp_path: Path
) -> None:
    world, lab, name = shared_world, shared_lab, "audited"
    (key,) = lab.add_vm(name, [8 * MIB]).disks
    lab.write(name, key, 0, data(MIB, name))
    job = world.back_up(name)
    world.export(job["point_id"], key)
    world.ask("point", "delete", job["point_id"])

    records = world.ask("audit", "show", "--since", "1h", "--limit", "0")["records"]

    def shown(act: str) -> list[dict[str, Any]]:
        return [each for each in records if each["act"].startswith(act)]

    me = f"local:{os.getuid()}"
    (start,) = (each for each in shown("backup.start") if each["subject"] == job["job_id"])
    assert (start["log"], start["actor"], start["facts"]["vm"]) == ("hub", me, name)
    (end,) = (each for each in shown("backup.end") if each["subject"] == job["job_id"])
    assert (end["log"], end["actor"], end["outcome"]) == ("hub", "system:hub", "done")
    (issued,) = (each for each in shown("lease.issue") if each["facts"].get("purpose") == job["job_id"])
    assert (issued["log"], issued["actor"]) == ("credentials", "hub")
    (redeemed,) = (each for each in shown("lease.redeem") if each["subject"] == issued["subject"])
    assert (redeemed["actor"], redeemed["outcome"]) == ("agent:local", "done")
    (run,) = (each for each in shown("backup.run") if each["subject"] == job["job_id"])
    assert (run["log"], run["actor"]) == ("agent:local", "agent:local")
    logins = [each for each in shown("vcenter.login") if each["facts"]["operation"] == "backup"]
    assert {each["log"] for each in logins} == {"agent:local"}
    of_point = [each for each in shown("point.") if each["subject"] == job["point_id"]]
    assert [(each["act"], each["outcome"]) for each in of_point] == [
        ("point.export", "begun"),
        ("point.export", "done"),
        ("point.delete", "done"),
    ]

    verified = world.ask("audit", "verify")["logs"]
    assert [each["log"] for each in verified] == ["hub", "credentials", "agent:local"]
    assert all(each["records"] and not each["findings"] for each in verified)
    assert world.run("audit", "verify").stdout.count("ok ") == len(verified)

    paths = world.installation
    logs = [each.audit_log_dir for each in (paths.hub, paths.credentials, paths.agent("local"))]
    text = "".join(file.read_text() for log in logs for file in log.glob("*.jsonl"))
    assert json.dumps(PASSWORD)[1:-1] not in text
    copy = tmp_path / "copy"
    shutil.copytree(logs[0], copy)
    (segment,) = copy.glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[start["sequence"] - 1] = lines[start["sequence"] - 1].replace(name.encode(), b"another")
    segment.write_bytes(b"".join(lines))
    (wrong,) = world.ask("audit", "verify", str(copy), code=1)["logs"]
    assert [(each["sequence"], each["problem"]) for each in wrong["findings"]] == [
        (start["sequence"], "changed")
    ]
    head = f"hub:{verified[0]['head_sequence']}:{verified[0]['head_hash']}"
    segment.write_bytes(b"".join(lines[: start["sequence"] - 1]))
    (cut,) = world.ask("audit", "verify", str(copy), "--expect", head, code=1)["logs"]
    assert [(each["sequence"], each["problem"]) for each in cut["findings"]] == [
        (start["sequence"], "truncated")
    ]
