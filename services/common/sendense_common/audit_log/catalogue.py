# SPDX-License-Identifier: Apache-2.0
"""The acts that are recorded. One that is not here cannot be: names stay the same over the years."""

from __future__ import annotations

RIGHTS = {
    # Who may do what. Such an act is refused when it cannot be recorded.
    "agent.invite": "a site was invited",
    "agent.enroll": "an agent asked to be enrolled",
    "agent.approve": "a site's agent was approved",
    "agent.reject": "an invitation of a site was made useless",
    "agent.revoke": "a site's agent was revoked",
    "agent.rotate": "a site's agent got new keys",
    "agent.register": "the credentials service learned an agent's public keys",
    "agent.remove": "the credentials service forgot an agent",
    "site.register": "a site and its SSH key became known to the hub",
    "credential.store": "a credential was stored",
    "credential.rotate": "a credential got a new password",
    "credential.bind": "a credential was bound to another address or certificate of a vCenter",
    "credential.delete": "a credential was deleted",
    "credential.grant": "an agent may use a credential",
    "credential.ungrant": "an agent may no longer use a credential",
    "credential.unblock": "a credential is no longer blocked",
    "key.rotate": "new secrets go under another key-encryption key, made for it",
    "key.rewrap": "stored secrets were put under the active key",
    "key.drop": "a key-encryption key was dropped for good",
    "key.backup": "the credentials database was backed up",
    "key.restore": "the credentials database was restored",
    "lease.issue": "an agent may open a credential once",
    "lease.redeem": "an agent opened a credential with a lease",
    "lease.end": "a lease ended unused",
    "token.create": "an operator's token was made",
    "token.revoke": "an operator's token was revoked",
    "operator.change": "an operator's role or certificate was changed",
    "log.accept": "a log that is not the one that was seen before was accepted as it is",
    "vcenter.add": "a vCenter became known",
    "vcenter.change": "a vCenter's settings were changed",
    "vcenter.remove": "a vCenter was removed",
    "vcenter.unblock": "logins to a vCenter were permitted again",
}

EVENTS = {
    # Also done when it cannot be recorded: without it, a password that was refused has its account locked.
    "credential.block": "a credential was blocked",
    "vcenter.login": "an agent logged in to a vCenter",
    "vcenter.test": "a login to a vCenter was tried",
    "tunnel.refuse": "an SSH connection, or something asked for on it, was refused",
    "call.refuse": "a call that its caller may not make",
    "backup.start": "a backup was ordered",
    "backup.run": "an agent began an attempt of a backup",
    "backup.end": "a backup ended",
    "job.cancel": "a job was cancelled",
    "job.limit": "how fast a job may read was set",
    "point.export": "a disk of a restore point was exported",
    "point.verify": "a restore point was verified",
    "point.delete": "a restore point was deleted",
    "trust.accept": "changed block tracking of a VM is trusted again",
    "trust.reset": "changed block tracking of a VM was turned off and on",
    "repository.scan": "points of a repository were taken into the catalog",
    "catalog.restore": "the catalog was replaced by a copy",
    "reconcile.order": "an operator ordered a reconciliation",
    "reconcile.act": "a reconciliation put something right",
    "snapshot.remove": "an agent removed snapshots",
    "service.start": "the service started, with these settings",
    "service.stop": "the service stopped",
    "log.mended": "the log's end was torn when the service started; it goes on after it",
    "log.lost": "records could not be written",
    "log.limited": "more refusals came than are recorded one by one",
    "log.discarded": "the oldest records were removed to stay within the log's size",
    "log.contradicts": "a log is not the one that was seen before",
}

ACTS = {**RIGHTS, **EVENTS}
