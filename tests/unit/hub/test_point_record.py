# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.jobs import job_changes, point_record
from sendense_hub.repository import LayerRef, PointDocument
from sendense_hub.repository.document import DiskDocument

pytestmark = pytest.mark.unit

words = st.text(max_size=8)
sizes = st.integers(0, 2**62)
documents = st.builds(
    PointDocument,
    **dict.fromkeys(("point_id", "job_id", "hub_id", "vcenter_name", "vcenter_uuid", "vm_name"), words),
    vm_instance_uuid=words,
    snapshot_time_us=sizes,
    complete_time_us=sizes,
    quiesce_result=words,
    disks=st.lists(
        st.builds(
            DiskDocument,
            key=st.integers(-(2**31), 2**31 - 1),
            capacity_bytes=sizes,
            layer_file=st.just("disk-2000.qcow2"),
            ledger_file=st.just("disk-2000.ledger"),
        ),
        max_size=3,
    ).map(tuple),
    unprotected_disks=st.lists(words, max_size=3).map(tuple),
    vm_config=st.recursive(
        st.none() | st.booleans() | st.integers() | words,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
        max_leaves=5,
    ),
    nvram=st.binary(max_size=32),
)


@given(documents)
def test_a_document_comes_back_as_it_was_written(document: PointDocument):
    assert PointDocument.from_json(document.to_json(), where="x") == document


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"format_version": 2}',
        b"\xff",
        b'{"format_version": 1, "disks": [1]}',
    ],
)
def test_a_document_that_cannot_be_read_is_corrupt(text: bytes):
    with pytest.raises(SendenseError, match="x cannot be read") as corrupt:
        PointDocument.from_json(text, where="x")
    assert corrupt.value.reason == Reason.REASON_POINT_CORRUPT


def a_document() -> PointDocument:
    plan = agent.BackupPlan(
        vcenter_uuid="vc-uuid",
        vm_instance_uuid="vm-uuid",
        vm_name="web now",
        quiesce_result="quiesced",
        vm_config_json='{"name": "wéb"}'.encode(),
        nvram=b"\x00\xff",
        disks=[
            agent.PlannedDisk(
                key=2000,
                label="Hard disk 1",
                disk_object_id="1-2000",
                backing_uuid="b",
                capacity_bytes=1024,
                change_id="52 aa/7",
                mode=agent.DISK_MODE_INCREMENTAL,
            )
        ],
        skipped_disks=[agent.SkippedDisk(key=2001, label="Hard disk 2", reason="independent")],
    )
    job = pb.Job(job_id="j", vcenter_name="vc", vm_name="web then")
    job_changes.plan(plan)(job)
    progress = agent.DiskProgress(disk_key=2000, copied_bytes=512)
    job_changes.disk_done(agent.DiskDone(progress=progress))(job)
    return point_record.document(
        job,
        plan,
        point_id="p",
        hub_id="h",
        snapshot_time_us=7,
        layers={2000: LayerRef("d", 2000, "disk-2000.qcow2", 1024)},
        parents={2000: "parent"},
        newest_us=0,
    )


def test_what_the_plan_said_is_in_the_document_and_in_the_message(tmp_path: Path):
    document = a_document()
    (disk,) = document.disks
    assert (disk.copied_bytes, disk.parent_point_id, disk.change_id) == (512, "parent", "52 aa/7")
    assert (disk.layer_file, disk.ledger_file) == ("disk-2000.qcow2", "disk-2000.ledger")
    assert document.vm_config == {"name": "wéb"}
    assert document.unprotected_disks == ("Hard disk 2: independent",)
    (tmp_path / disk.layer_file).write_bytes(bytes(4096))
    message = point_record.message(document, "default", "a/b/p", tmp_path)
    (shown,) = message.disks
    not_in_it = {"stored_bytes", "verify_time", "damage"}
    for name in [field.name for field in shown.DESCRIPTOR.fields if field.name not in not_in_it]:
        assert getattr(shown, name) == getattr(disk, name), name
    for name in (
        "point_id",
        "job_id",
        "vcenter_name",
        "vcenter_uuid",
        "vm_name",
        "vm_instance_uuid",
        "quiesce_result",
    ):
        assert getattr(message, name) == getattr(document, name), name
    assert message.snapshot_time.ToMicroseconds() == 7
    assert message.complete_time.ToMicroseconds() == document.complete_time_us > 0
    assert (message.repository_name, message.directory) == ("default", "a/b/p")
    assert shown.stored_bytes == (tmp_path / disk.layer_file).stat().st_blocks * 512


def test_a_point_whose_layer_is_missing_is_corrupt(tmp_path: Path):
    with pytest.raises(SendenseError) as corrupt:
        point_record.message(a_document(), "default", "d", tmp_path)
    assert corrupt.value.reason == Reason.REASON_POINT_CORRUPT
