# SPDX-License-Identifier: Apache-2.0
"""The only room that encrypts and decrypts: envelopes of stored secrets, and answers sealed to agents."""

from sendense_credentials.vault.credentials import CredentialVault
from sendense_credentials.vault.key_file import create_key_file
from sendense_credentials.vault.keyring import Keyring
from sendense_credentials.vault.keys import KeyReport, KeyVault
from sendense_credentials.vault.leases import LeaseVault
from sendense_credentials.vault.local_keys import LocalKeys, load_key_file
from sendense_credentials.vault.rewrapping import Rewrapping

__all__ = [
    "CredentialVault",
    "KeyReport",
    "KeyVault",
    "Keyring",
    "LeaseVault",
    "LocalKeys",
    "Rewrapping",
    "create_key_file",
    "load_key_file",
]
