# SPDX-License-Identifier: Apache-2.0
"""All checks, one after another, each scenario with what came of it; the installation is left as it was."""

from __future__ import annotations

import asyncio
import datetime
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense_lab.accept.checks import CHECKS
from sendense_lab.accept.site import Address, Site, is_on, words
from sendense_lab.accept.stand import AcceptError, CannotProvokeError, CheckError, Product, Stand
from sendense_lab.scenarios import read, shipped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AcceptOptions:
    """What is asked for."""

    state: Path
    """Of a running `sendense up`."""
    address: Address
    username: str
    password: str
    vms: Sequence[str]
    may_destroy: Sequence[str]
    """The same names again: whoever gives them means it."""
    move_to: str = ""
    only: Sequence[str] = ()
    """Names of checks; empty: all."""


async def run_accept(options: AcceptOptions) -> dict[str, Any]:
    """Runs the checks and gives the report.

    Raises:
        AcceptError: it is not allowed, or cannot begin.
    """
    if not options.vms or set(options.vms) != set(options.may_destroy):
        raise AcceptError(
            "every VM is switched off and on, changed and snapshot; for each --vm NAME there must be "
            "--i-may-destroy-this-vm NAME, and for no other"
        )
    unknown = set(options.only) - set(CHECKS)
    if unknown:
        raise AcceptError(f"there is no check {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    product = Product(options.state)
    try:
        site = await asyncio.to_thread(Site, options.address, options.username, options.password)
    except Exception as error:
        raise AcceptError(f"logging in at {options.address.host}: {words(error)}") from error
    name = f"accept-{secrets.token_hex(4)}"
    try:
        await _add(product, options, name)
        try:
            vms = {vm: await _checked(options, product, site, name, vm) for vm in options.vms}
        finally:
            await _remove(product, name)
        about = site.content.about
        return {
            "vcenter": about.fullName,
            "api_version": about.apiVersion,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "vms": {vm: _by_scenario(results) for vm, results in vms.items()},
        }
    finally:
        await asyncio.to_thread(site.close)


async def _add(product: Product, options: AcceptOptions, name: str) -> None:
    address = options.address
    trust = ["--ca-file", address.ca_file] if address.ca_file else ["--thumbprint", address.thumbprint]
    await product.ask(
        "vcenter", "add", name, "--address", f"{address.host}:{address.port}",
        "--username", options.username, "--password-stdin", *trust,
        secret=options.password + "\n",
    )  # fmt: skip


async def _remove(product: Product, name: str) -> None:
    """Deletes the points that were made, newest first, and the vCenter."""
    listed = await product.ask("point", "list", "--vcenter", name, "--limit", "1000")
    for point in listed["points"]:
        await product.ask("point", "delete", point["point_id"])
    await product.ask("vcenter", "remove", name)


async def _checked(
    options: AcceptOptions, product: Product, site: Site, vcenter: str, vm: str
) -> dict[str, dict[str, Any]]:
    """Of one VM: by check, its outcome."""
    try:
        machine = await asyncio.to_thread(site.machine, vm)
    except LookupError as error:
        raise AcceptError(str(error)) from error
    results = {}
    was_on = await asyncio.to_thread(is_on, machine)
    for check in options.only or CHECKS:
        stand = Stand(product, site, machine, vm, vcenter, options.move_to)
        log.info("%s: %s", vm, check)
        outcome, why = await _outcome(stand, check)
        results[check] = {"outcome": outcome, "why": why, "seen": stand.evidence}
    await Stand(product, site, machine, vm, vcenter).power(on=was_on)
    return results


async def _outcome(stand: Stand, check: str) -> tuple[str, str]:
    outcome, why = "passed", ""
    try:
        await CHECKS[check](stand)
    except CannotProvokeError as error:
        outcome, why = "cannot", str(error)
    except CheckError as error:
        outcome, why = "failed", str(error)
    except Exception as error:
        log.exception("%s", check)
        outcome, why = "failed", f"the check itself ended: {words(error)}"
    try:
        await stand.nothing_left()
    except CheckError as error:
        return "failed", f"{why}; {error}" if why else str(error)
    return outcome, why


def _by_scenario(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each scenario with the outcome of the check that provokes it, or why none does."""
    rows = []
    for name, file in shipped().items():
        scenario = read(file)
        check = scenario.outside.provoke
        found = results.get(check)
        if check and found is None:
            found = {"outcome": "cannot", "why": "not asked for", "seen": []}
        if found is None:
            found = {"outcome": "cannot", "why": scenario.outside.cannot, "seen": []}
        rows.append({"scenario": name, "title": scenario.title, "check": check, **found})
    return rows
