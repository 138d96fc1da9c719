# SPDX-License-Identifier: Apache-2.0
"""`sendense-hub restore-catalog`: puts a copy of the catalog in the place of the one that was lost.

For a hub that does not run. What is there is moved aside, never removed. A copy is older than the truth: jobs
that had not ended in it are ended here, so that none of them is gone on with; points that were made since are
put in by `sendense repository scan`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_common.paths import HubPaths, private_dir
from sendense_common.service import only_one
from sendense_hub.catalog import cleanups, copies, jobs, open_catalog
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.jobs.board import end
from sendense_hub.repository import catalog_copies

_MANY = 10_000
_DATABASES = ("catalog.sqlite", "dbos.sqlite")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="sendense-hub restore-catalog",
        description="Puts a copy of the catalog in the place of one that was lost. The hub must not run. "
        "What is there is moved aside. Afterwards start the hub and run `sendense repository scan`.",
    )
    made.add_argument("--state", type=Path, required=True, metavar="DIR", help="the hub's state directory")
    made.add_argument(
        "source",
        type=Path,
        metavar="REPOSITORY|FILE",
        help="a repository's directory, of which the newest copy is taken; or one copy",
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs it; one line of JSON says what was done. The exit code."""
    options = parser().parse_args(arguments)
    try:
        done = restore(options.state, chosen(options.source))
    except SendenseError as error:
        sys.stderr.write(json.dumps({"error": {**_words(error)}}) + "\n")
        return 1
    sys.stdout.write(json.dumps(done) + "\n")
    return 0


def chosen(source: Path) -> Path:
    """The copy that is meant; INVALID_REQUEST."""
    if not source.is_dir():
        return source
    newest = catalog_copies.newest(source)
    if len(newest) == 1:
        return next(iter(newest.values()))
    raise SendenseError(
        Reason.REASON_INVALID_REQUEST,
        f"{source} has copies of the catalogs of {len(newest)} hubs",
        remedy="Name one of them: " + ", ".join(str(path) for path in newest.values()) + "."
        if newest
        else "Start with an empty catalog and `sendense repository scan`.",
    )


def restore(state: Path, copy: Path) -> dict[str, object]:
    """Puts `copy` in place; what was done.

    Raises:
        SendenseError: INVALID_REQUEST when it is no copy, INTERNAL when it is of a newer version,
            SERVICE_UNAVAILABLE when the hub runs.
    """
    copies.check(copy)
    private_dir(state)
    with only_one(state / "api.lock", "hub"):
        new = state / f".{_DATABASES[0]}.new"
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        shutil.copyfile(copy, new)
        hub_id, ended = asyncio.run(_end_jobs(new))
        aside = asyncio.run(_put_in_place(new, state, copy))
    return {"taken_from": str(copy), "hub_id": hub_id, "ended_jobs": ended, "moved_aside": aside}


async def _put_in_place(new: Path, state: Path, copy: Path) -> list[str]:
    async with (
        audit_log.opened(HubPaths(state, state).audit_log_dir, "hub"),
        audit_log.recorded(
            "catalog.restore", subject="catalog", actor=f"local:{os.getuid()}", copy=str(copy)
        ),
    ):
        aside = _move_aside(state)
        new.rename(state / _DATABASES[0])
    return aside


def _move_aside(state: Path) -> list[str]:
    """The queue goes with the catalog: it may know other jobs, and other ends of them."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    there = [path for name in _DATABASES for path in sorted(state.glob(f"{name}*"))]
    return [
        str(path.rename(path.with_name(f"{path.name}.before-{stamp}")))
        for path in there
        if ".before-" not in path.name
    ]


async def _end_jobs(catalog_file: Path) -> tuple[str, list[str]]:
    """Brings the tables up to date, and ends what had not ended when the copy was made."""
    async with open_catalog(f"sqlite:///{catalog_file}") as catalog:

        def write(connection: sa.Connection) -> list[str]:
            ended = []
            for job in jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY):
                failure = SendenseError(
                    Reason.REASON_HUB_RESTARTED,
                    f"the catalog was restored from a copy in which job {job.job_id} had not ended",
                    remedy="Scan the repository: if it made a point, it is there. Else start it again.",
                    vm=job.vm_name,
                    vcenter=job.vcenter_name,
                )
                cleanups.add(
                    connection,
                    PendingCleanup(job.job_id, job.vcenter_name, job.vm_instance_uuid, job.vm_name),
                )
                end(job, pb.JOB_STATE_FAILED, failure)
                jobs.write(connection, job)
                ended.append(job.job_id)
            return ended

        return catalog.hub_id, await catalog.run(write)


def _words(error: SendenseError) -> dict[str, str]:
    return {"reason": error.reason_name, "message": error.message, "remedy": error.remedy}
