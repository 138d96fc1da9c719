# SPDX-License-Identifier: Apache-2.0
"""The only room that encrypts and decrypts: envelopes of stored secrets, and answers sealed to agents."""

from sendense_credentials.vault.credentials import CredentialVault
from sendense_credentials.vault.leases import LeaseVault
from sendense_credentials.vault.local_keys import LocalKeys, create_key_file, load_key_file

__all__ = ["CredentialVault", "LeaseVault", "LocalKeys", "create_key_file", "load_key_file"]
