# SPDX-License-Identifier: Apache-2.0
"""Stands in for nbdkit with its vddk plugin and VMware's library, neither of which can be had here.

It is first on the PATH under the name nbdkit. Of `nbdkit … vddk …` it checks every argument, takes the
password from its descriptor, and becomes the real nbdkit with a raw file; else it is the real one at once.
What it knows is in the file that its first argument names: the fields of `Library`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

WRONG_PASSWORD = "VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password."
NO_SUCH_DISK = "VixDiskLib_Open: The system cannot find the file specified"


@dataclass
class Library:
    """What the stand-in has, and what it was asked."""

    nbdkit: str
    """The real one."""
    libdir: str
    user: str
    password: str
    thumbprint: str
    disks: dict[str, str]
    """File name on a datastore to a raw file here; to nothing: see `_refusing_later`."""
    record: str
    """Takes what it was asked, a line of JSON each time."""


def main() -> None:
    """Becomes another program."""
    library = Library(**json.loads(Path(sys.argv[1]).read_text()))
    arguments = sys.argv[2:]
    if "vddk" not in arguments:
        os.execv(library.nbdkit, ["nbdkit", *arguments])
    plugin = arguments.index("vddk")
    before, after = arguments[:plugin], arguments[plugin + 1 :]
    given = dict(each.split("=", 1) for each in after if "=" in each)
    if "--dump-plugin" in after:
        _dump(library, given)
    descriptor = given["password"].removeprefix("-")
    assert descriptor.isdecimal(), "the password must come by a descriptor"
    with os.fdopen(int(descriptor)) as inherited:
        password = inherited.read()
    with Path(library.record).open("a") as record:
        facts = {
            "before": before,
            "given": given,
            "password_sha256": hashlib.sha256(password.encode()).hexdigest(),
            "config": Path(given["config"]).read_text(),
            "library_path": os.environ.get("LD_LIBRARY_PATH", ""),
        }
        record.write(json.dumps(facts) + "\n")
    known = {"libdir", "config", "server", "port", "thumbprint", "user", "password", "vm", "snapshot"}
    assert set(given) == known | {"transports", "file", "retries", "retry-delay"}, given
    filters = [f"{name}={given[name]}" for name in ("retries", "retry-delay")]
    if (given["user"], password) != (library.user, library.password):
        trouble = WRONG_PASSWORD
    elif given["thumbprint"] != library.thumbprint:
        trouble = "VixDiskLib_ConnectEx: SSL exception: the thumbprint of the host certificate does not match"
    elif given["file"] not in library.disks:
        trouble = NO_SUCH_DISK
    else:
        raw = library.disks[given["file"]]
        if not raw:
            _refusing_later(library, before, filters)
        os.execv(library.nbdkit, ["nbdkit", *before, "file", f"file={raw}", *filters])
    # As the plugin does: it begins to serve, and fails at each connection.
    opening = f'echo tried >> "{library.record}.tries"; echo "EIO {trouble}" >&2; exit 1'
    os.execv(library.nbdkit, ["nbdkit", *before, "eval", f"open={opening}", "get_size=echo 512", *filters])


def _refusing_later(library: Library, before: list[str], filters: list[str]) -> None:
    """Two connections can be opened, no read works, and whoever opens it anew is refused."""
    tries = f"{library.record}.tries"
    refusal = f'echo "EIO {WRONG_PASSWORD}" >&2; exit 1'
    opening = f'echo tried >> "{tries}"; if [ $(wc -l < "{tries}") -gt 2 ]; then {refusal}; fi'
    reading = 'echo "EIO the connection is lost" >&2; exit 1'
    plugin = [f"open={opening}", "get_size=echo 512", f"pread={reading}"]
    os.execv(library.nbdkit, ["nbdkit", *before, "eval", *plugin, *filters])


def _dump(library: Library, given: dict[str, str]) -> None:
    if given.get("libdir") != library.libdir:
        sys.exit("nbdkit: error: could not open libvixDiskLib.so: No such file or directory")
    sys.stdout.write("path=/nbdkit-vddk-plugin.so\nname=vddk\nversion=1.32.5\n")
    sys.stdout.write(f"vddk_library_version=8\nvddk_dll={library.libdir}/lib64/libvixDiskLib.so.8\n")
    sys.exit(0)


def install(directory: Path, library: Library) -> Path:
    """Makes `directory`/nbdkit; the directory then goes to the front of the PATH."""
    facts = directory / "library.json"
    facts.write_text(json.dumps(asdict(library)))
    program = directory / "nbdkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{facts}" "$@"\n')
    program.chmod(0o755)
    return directory


if __name__ == "__main__":
    main()
