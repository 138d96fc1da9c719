# SPDX-License-Identifier: Apache-2.0
"""What both layers of an envelope authenticate, so that no part of one record opens in another's place."""

from __future__ import annotations

from dataclasses import dataclass

from sendense_common.keys import canonical


@dataclass(frozen=True)
class Record:
    """One version of one credential."""

    credential_id: str
    version: int

    def of_data_key(self, key_id: str) -> bytes:
        """For the data key under a key-encryption key."""
        return canonical("sendense credential data key v1", self.credential_id, self.version, key_id)

    def of_secret(self, first_key_id: str) -> bytes:
        """For the secret, that was enclosed when this key was the active one."""
        return canonical("sendense credential secret v1", self.credential_id, self.version, first_key_id)
