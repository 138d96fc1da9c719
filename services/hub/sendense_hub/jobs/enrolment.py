# SPDX-License-Identifier: Apache-2.0
"""Letting sites in, giving them new keys, and putting them out again."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import replace

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import invitation_service_pb2, site_service_pb2
from sendense.hub.v1 import job_pb2 as pb
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_hub.catalog import invitations, jobs, sites
from sendense_hub.clients.sites import site_revoked
from sendense_hub.domain import times
from sendense_hub.domain.invitations import (
    APPROVED,
    OPEN,
    PENDING,
    SPENT,
    Invitation,
    ShownKeys,
    WrongCodes,
    code_hash,
    issue,
    new_code,
    show,
)
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.jobs.board import end
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

_MANY = 10_000
_WRONG_CODES, _WITHIN_US = 10, 60 * 1_000_000


class Enrolment:
    """One hub's."""

    def __init__(
        self,
        workshop: Workshop,
        *,
        clock: Callable[[], int] = times.now_us,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Args: clock: the wall clock in microseconds."""
        self._workshop = workshop
        self._clock = clock
        self._random_bytes = random_bytes
        self._wrong_codes = WrongCodes(_WRONG_CODES, _WITHIN_US)

    async def invite(self, site: str, *, rotate: bool) -> tuple[Invitation, str]:
        """A new invitation and its code; an earlier one of the site is no more.

        Raises:
            SendenseError: SITE_EXISTS, SITE_NOT_FOUND, SITE_REVOKED.
        """
        code = new_code(self._random_bytes)
        made = issue(site, code_hash(site, code), rotates=rotate, now_us=self._clock())

        def keep(connection: sa.Connection) -> None:
            _check_invited(connection, site, rotate=rotate)
            before = invitations.find(connection, site)
            invitations.put(connection, replace(made, replaced_code_hash=before.code_hash if before else b""))
            audit_log.record_blocking("agent.invite", subject=site, what="new keys" if rotate else "new site")

        await self._workshop.catalog.run(keep)
        log.info("site %s is invited%s", site, " to show new keys" if rotate else "")
        return made, code

    async def listed(self) -> list[Invitation]:
        """The newest of each site, as it is now."""
        now_us = self._clock()
        return [each.at(now_us) for each in await self._workshop.catalog.run(invitations.listed)]

    async def show(
        self, site: str, code: str, keys: ShownKeys
    ) -> invitation_service_pb2.InvitationState.ValueType:
        """An agent shows a code with its keys: how far its invitation is, PENDING or APPROVED.

        Raises:
            SendenseError: INVITATION_INVALID, ENROLMENT_LIMITED; INVALID_REQUEST for what is no code.
        """
        hashed, now_us = code_hash(site, code), self._clock()
        # Who shows a code only says which site it is: never the actor of one that is known.
        stranger = f"unproven:{site}"

        def shown(
            connection: sa.Connection,
        ) -> tuple[Invitation | None, Invitation | None, SendenseError | None]:
            before = invitations.find(connection, site)
            after, refusal = show(before, site, hashed, keys, now_us)
            if after is not None and after != before:
                invitations.put(connection, after)
                shown_key = keys.fingerprint
                if after.state == SPENT:  # however many wrong codes came before it
                    audit_log.record_blocking(
                        "agent.reject", subject=site, actor=stranger, why=after.why, ssh_fingerprint=shown_key
                    )
                else:
                    audit_log.record_blocking(
                        "agent.enroll", subject=site, actor=stranger, ssh_fingerprint=shown_key
                    )
            return before, after, refusal

        before, after, refusal = await self._workshop.catalog.run(shown)
        if refusal is not None:
            if after is not None and after.state == SPENT:
                log.warning(
                    "the invitation of site %s was made useless: %s (key %s)",
                    site,
                    after.why,
                    keys.fingerprint,
                )
            if self._wrong_codes.too_many(now_us):
                raise SendenseError(
                    Reason.REASON_ENROLMENT_LIMITED,
                    "many wrong codes were tried in the last minute",
                    remedy="Wait a minute. A right code is taken all the same.",
                )
            log.warning("site %r was not let in: %s (key %s)", site, refusal.message, keys.fingerprint)
            await audit_log.record(
                "agent.enroll",
                subject=site,
                outcome="refused",
                actor=stranger,
                ssh_fingerprint=keys.fingerprint,
                reason=refusal.reason_name,
            )
            raise refusal
        assert after is not None
        if before is None or before.state != after.state:
            log.info("site %s shows its keys, and waits for approval (SSH key %s)", site, keys.fingerprint)
        return after.state

    async def approve(self, site: str, fingerprint: str) -> Invitation:
        """The keys that wait are the site's; its old SSH key opens nothing any more.

        Args:
            site: whose invitation.
            fingerprint: of the SSH key that was compared.

        Raises:
            SendenseError: INVITATION_NOT_FOUND, FINGERPRINT_MISMATCH, SITE_EXISTS, SITE_REVOKED.
        """

        def take(connection: sa.Connection) -> tuple[Invitation, str]:
            found = self._waiting(connection, site, {PENDING, APPROVED})
            keys = found.keys
            if keys.fingerprint != fingerprint:
                raise SendenseError(
                    Reason.REASON_FINGERPRINT_MISMATCH,
                    f"the key that waits for site {site!r} is {keys.fingerprint}, not {fingerprint}",
                    remedy=f"Look again: `sendense agent show {site}`.",
                    site=site,
                )
            if found.state == APPROVED:
                return found, ""
            _check_invited(connection, site, rotate=found.rotates)
            before = sites.set_key(connection, site, keys.ssh_public_key, keys.fingerprint)
            approved = replace(found, state=APPROVED)
            invitations.put(connection, approved)
            act = "agent.rotate" if found.rotates else "agent.approve"
            audit_log.record_blocking(
                act, subject=site, ssh_fingerprint=keys.fingerprint, replaces_ssh_fingerprint=before or "none"
            )
            return approved, before

        approved, before = await self._workshop.catalog.run(take)
        self._workshop.sites.revoked.discard(site)
        if before:
            self._workshop.exports.revoke_key(before)
        log.info("site %s is let in with the key %s", site, approved.keys.fingerprint)
        return approved

    async def reject(self, site: str, why: str) -> None:
        """An invitation is of no use any more; INVITATION_NOT_FOUND."""

        def spend(connection: sa.Connection) -> None:
            found = self._waiting(connection, site, {OPEN, PENDING})
            invitations.put(connection, found.spent(why))
            audit_log.record_blocking("agent.reject", subject=site, why=why)

        await self._workshop.catalog.run(spend)
        log.warning("the invitation of site %s was made useless: %s", site, why)

    async def revoke(self, site: str) -> tuple[site_service_pb2.Site, list[str]]:
        """A site's key opens nothing any more; its connections and jobs end. SITE_NOT_FOUND.

        Returns:
            The site, and the jobs that fail by it.
        """

        def write(connection: sa.Connection) -> site_service_pb2.Site:
            invitations.forget(connection, site)
            site_now = sites.revoke(connection, site)
            audit_log.record_blocking("agent.revoke", subject=site, ssh_fingerprint=site_now.fingerprint)
            return site_now

        revoked = await self._workshop.catalog.run(write)
        self._workshop.sites.revoked.add(site)
        failed = await self._fail_jobs(site)
        # Last, so that a job learns why its agent is gone.
        self._workshop.exports.revoke_key(revoked.fingerprint)
        log.warning("site %s was revoked (key %s); %d jobs fail", site, revoked.fingerprint, len(failed))
        return revoked, failed

    async def _fail_jobs(self, site: str) -> list[str]:
        """All that have not ended; one that waits gets its turn at once, and fails there."""
        workshop, cause = self._workshop, site_revoked(site)
        live = {each.job.job_id: each for each in workshop.board.running()}
        failed = []
        for job in await workshop.catalog.run(
            lambda connection: jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY)
        ):
            if job.site_name != site:
                continue
            failed.append(job.job_id)
            if job.job_id in live:
                live[job.job_id].ask_to_stop(cause)
            elif job.state == pb.JOB_STATE_QUEUED:
                end(job, pb.JOB_STATE_FAILED, cause)  # there is nothing of it
                await workshop.catalog.run(
                    lambda connection, job=job: jobs.write(  # type: ignore[misc]
                        connection, job, expected=[pb.JOB_STATE_QUEUED]
                    )
                )
        return failed

    def _waiting(
        self,
        connection: sa.Connection,
        site: str,
        states: set[invitation_service_pb2.InvitationState.ValueType],
    ) -> Invitation:
        found = invitations.find(connection, site)
        if found is None or found.at(self._clock()).state not in states:
            what = "there is none" if found is None else found.at(self._clock()).why or "nobody showed keys"
            raise SendenseError(
                Reason.REASON_INVITATION_NOT_FOUND,
                f"no invitation of site {site!r} waits: {what}",
                remedy=f"`sendense agent list` shows them; `sendense agent invite {site}` makes a new one.",
                site=site,
            )
        return found


def _check_invited(connection: sa.Connection, site: str, *, rotate: bool) -> None:
    """Whether the site has keys or not, as the invitation supposes."""
    known = next((each for each in sites.listed(connection) if each.name == site), None)
    active = known is not None and not known.HasField("revoke_time")
    if active and not rotate:
        assert known is not None
        raise SendenseError(
            Reason.REASON_SITE_EXISTS,
            f"site {site!r} has the key {known.fingerprint}",
            remedy=f"For new keys: `sendense agent rotate-key {site}`.",
            site=site,
        )
    if rotate and not active:
        if known is not None:
            raise site_revoked(site)
        sites.get(connection, site)  # says that there is none
