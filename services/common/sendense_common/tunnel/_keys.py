# SPDX-License-Identifier: Apache-2.0
"""SSH keys: made once, kept private, compared by fingerprint."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir


def ensure_key(path: Path, comment: str) -> str:
    """The public half ("ssh-ed25519 AAAA… comment") of the private key at `path`; made if it is missing.

    The private file appears complete, with mode 0600, or not at all; the public half is beside it (`.pub`).

    Raises:
        SendenseError: INTERNAL when what is there is not a private key.
    """
    if not path.exists():
        private_dir(path.parent)
        key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
        hidden = path.with_name(f".{path.name}.{os.getpid()}")
        hidden.unlink(missing_ok=True)
        hidden.touch(0o600, exist_ok=False)
        with hidden.open("wb") as file:
            file.write(key.export_private_key())
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(path)
    try:
        line = asyncssh.read_private_key(path).export_public_key().decode().strip()
    except (asyncssh.KeyImportError, OSError) as error:
        raise SendenseError(
            Reason.REASON_INTERNAL,
            f"{path} is not a usable private key: {error}",
            remedy="Restore the file from a copy, or remove it to have a new key made and enrol again.",
        ) from error
    path.with_name(path.name + ".pub").write_text(line + "\n")
    return line


def fingerprint(public_key: str) -> str:
    """Fingerprint "SHA256:…" of an OpenSSH public key line, as `ssh-keygen -l` prints it.

    Raises:
        SendenseError: INVALID_REQUEST when the line is not a public key.
    """
    return parse_public_key(public_key).get_fingerprint()


def parse_public_key(line: str) -> asyncssh.SSHKey:
    """The key of an OpenSSH public key line.

    Raises:
        SendenseError: INVALID_REQUEST when the line is not a public key.
    """
    try:
        return asyncssh.import_public_key(line)
    except asyncssh.KeyImportError as error:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"not an OpenSSH public key: {error}",
            remedy='It is one line of the form "ssh-ed25519 AAAA… comment".',
        ) from error
