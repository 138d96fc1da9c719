# SPDX-License-Identifier: Apache-2.0
"""Looks for a secret in all that a process holds and in files, however it may be written. Root only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

_CHUNK_BYTES = 8 * 1024 * 1024
_NOT_MEMORY = ("[vvar]", "[vvar_vclock]", "[vsyscall]", "/dev/", "anon_inode:")


def forms(secret: str) -> dict[str, bytes]:
    """The secret in every way of writing it that we know of."""
    plain = secret.encode()
    found = {
        "plain": plain,
        "latin-1": secret.encode("latin-1"),  # as Python keeps it
        "UTF-16LE": secret.encode("utf-16-le"),
        "UTF-16BE": secret.encode("utf-16-be"),
        "UTF-32": secret.encode("utf-32-le"),
        "hex": plain.hex().encode(),
        "HEX": plain.hex().upper().encode(),
        "URL": urllib.parse.quote(secret, safe="").encode(),
        "form": urllib.parse.quote_plus(secret).encode(),
        "JSON": json.dumps(secret)[1:-1].encode(),
        "XML": escape(secret, {'"': "&quot;"}).encode(),
    }
    for offset in range(3):
        for name, altchars in (("base64", b"+/"), ("base64 for URLs", b"-_")):
            found[f"{name} at {offset}"] = _base64_within(plain, offset, altchars)
    return {name: form for name, form in found.items() if name == "plain" or form != plain}


def _base64_within(data: bytes, offset: int, altchars: bytes) -> bytes:
    """The letters that stand for `data` alone, when so many bytes (modulo 3) come before it."""
    letters = base64.b64encode(bytes(offset) + data, altchars)
    return letters[(offset * 8 + 5) // 6 : (offset + len(data)) * 8 // 6]


class Search:
    """For one secret."""

    def __init__(self, secret: str) -> None:
        self._forms = forms(secret)
        self._overlap = max(map(len, self._forms.values())) - 1
        self._mapped_files: set[str] = set()
        self.searched_bytes = 0

    def in_bytes(self, data: bytes) -> set[str]:
        """The forms that are there."""
        self.searched_bytes += len(data)
        return {name for name, form in self._forms.items() if form in data}

    def in_process(self, pid: int) -> set[str]:
        """In memory, command line and environment, each named; empty too when it has ended."""
        found = set()
        for where in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                found |= {
                    f"{where}: {form}" for form in self.in_bytes(Path(f"/proc/{pid}/{where}").read_bytes())
                }
        with contextlib.suppress(OSError), Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for start, end in self._regions(pid):
                found |= {f"memory: {form}" for form in self._in_region(memory.fileno(), start, end)}
        return found

    def in_files(self, root: Path) -> set[str]:
        """In all files below a directory, and in their names."""
        found = set()
        for path in [root, *root.rglob("*")]:
            found |= {f"name of {path}: {form}" for form in self.in_bytes(os.fsencode(path))}
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    found |= {f"{path}: {form}" for form in self._in_file(file.fileno())}
        return found

    def _regions(self, pid: int) -> Iterator[tuple[int, int]]:
        """What can be read; a library that several processes have mapped read-only counts once."""
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, mode, offset, device, inode, *name = line.split(maxsplit=5)
            if "r" not in mode or any(name and name[0].startswith(each) for each in _NOT_MEMORY):
                continue
            if "w" not in mode and inode != "0":
                what = f"{device} {inode} {offset} {bounds if mode[3] == 's' else ''}"
                if what in self._mapped_files:
                    continue
                self._mapped_files.add(what)
            start, end = (int(each, 16) for each in bounds.split("-"))
            yield start, end

    def _in_region(self, memory: int, start: int, end: int) -> set[str]:
        found: set[str] = set()
        for at in range(start, end, _CHUNK_BYTES):
            with contextlib.suppress(OSError):  # unmapped meanwhile, or a device's
                length = min(_CHUNK_BYTES + self._overlap, end - at)
                found |= self.in_bytes(os.pread(memory, length, at))
        return found

    def _in_file(self, file: int) -> set[str]:
        found: set[str] = set()
        at = 0
        while data := os.pread(file, _CHUNK_BYTES + self._overlap, at):
            found |= self.in_bytes(data)
            at += _CHUNK_BYTES
        return found


def processes(mark: bytes) -> dict[int, str]:
    """Those that have `mark` in their environment: what each is."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes():
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if match := re.search(
                    r"sendense_\w+(\.\w+)*|^\S*?(?P<program>nbdkit|qemu-nbd|qemu-img|nbdinfo)\b", words
                ):
                    found[int(entry.name)] = match["program"] or match[0]
    return found
