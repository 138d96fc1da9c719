# SPDX-License-Identifier: Apache-2.0
"""What a hub that was killed has left in places of others goes, and nothing else does."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import PartFiles

pytestmark = pytest.mark.integration

_KILLED = """
import os, signal, sys
from pathlib import Path
from sendense_hub.repository import PartFiles
with PartFiles(Path(sys.argv[1])).beside(Path(sys.argv[2])) as part:
    part.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_at(notes: Path, output: Path) -> None:
    """A process is killed while it writes `output`."""
    done = subprocess.run([sys.executable, "-c", _KILLED, str(notes), str(output)], check=False)
    assert done.returncode == -9


def test_what_a_killed_process_was_writing_goes_when_the_next_one_looks(tmp_path: Path):
    notes, place = tmp_path / "notes", tmp_path / "place"
    place.mkdir()
    killed_at(notes, place / "disk.raw")
    (left,) = place.iterdir()
    assert left.read_bytes() == b"half of it"
    (place / ".mine.raw.01234567.part").touch()  # not noted: somebody else's
    assert PartFiles(notes).remove_left() == ([left], [])
    assert [path.name for path in place.iterdir()] == [".mine.raw.01234567.part"]
    assert list(notes.iterdir()) == []


def test_what_is_being_written_stays(tmp_path: Path):
    parts = PartFiles(tmp_path / "notes")
    with parts.beside(tmp_path / "disk.raw") as part:
        assert parts.remove_left() == ([], [])
        assert part.exists()
    assert not part.exists()
    assert list((tmp_path / "notes").iterdir()) == []


def test_a_note_that_was_changed_removes_nothing_of_anybody(tmp_path: Path):
    notes, precious = tmp_path / "notes", tmp_path / "precious"
    precious.write_text("kept")
    notes.mkdir()
    (notes / "a").symlink_to(precious)
    link = tmp_path / ".x.01234567.part"
    link.symlink_to(precious)
    (notes / "b").symlink_to(link)
    assert PartFiles(notes).remove_left() == ([], [])
    assert precious.read_text() == "kept"
    assert link.is_symlink()


def test_where_the_place_is_not_mounted_the_note_waits(tmp_path: Path):
    notes, place = tmp_path / "notes", tmp_path / "place"
    place.mkdir()
    killed_at(notes, place / "disk.raw")
    (left,) = place.iterdir()
    place.rename(tmp_path / "away")
    assert PartFiles(notes).remove_left() == ([], [])
    place.mkdir()  # the mount point is there, what is mounted is not
    assert PartFiles(notes).remove_left() == ([], [])
    place.rmdir()
    (tmp_path / "away").rename(place)
    assert PartFiles(notes).remove_left() == ([place / left.name], [])
    assert list(place.iterdir()) == []


def test_one_note_that_cannot_be_followed_holds_up_no_other(tmp_path: Path):
    notes, place = tmp_path / "notes", tmp_path / "place"
    place.mkdir()
    killed_at(notes, place / "disk.raw")
    (left,) = place.iterdir()
    (notes / "0").symlink_to(place / f".{'x' * 300}.01234567.part")
    (notes / "00").write_text("no link")
    removed, failed = PartFiles(notes).remove_left()
    assert removed == [left]
    assert [error.errno for error in failed] == [errno.ENAMETOOLONG]


def test_what_cannot_be_made_leaves_no_note(tmp_path: Path):
    parts = PartFiles(tmp_path / "notes")
    with pytest.raises(OSError, match="too long"), parts.beside(tmp_path / ("x" * 250)):
        pass
    assert list((tmp_path / "notes").iterdir()) == []


def test_a_place_for_notes_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "notes").touch()
    with pytest.raises(SendenseError) as error, PartFiles(tmp_path / "notes").beside(tmp_path / "out"):
        pass
    assert error.value.reason == Reason.REASON_SERVICE_UNAVAILABLE
    assert str(tmp_path / "notes") in error.value.message
