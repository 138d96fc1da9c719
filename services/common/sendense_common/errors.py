# SPDX-License-Identifier: Apache-2.0
"""One error for everything that can go wrong, and its way over the wire.

A `SendenseError` says what happened and where (message), what to do (remedy), and carries a stable
`Reason`. The reason alone decides the gRPC code and whether trying again can help, in one table, so that
the same trouble looks the same from every service.
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason

DOMAIN = "sendense"
_PREFIX = "REASON_"
_REMEDY_KEY = "remedy"
_RETRYABLE_KEY = "retryable"

_C = grpc.StatusCode

CODES: dict[Reason.ValueType, grpc.StatusCode] = {
    Reason.REASON_UNSPECIFIED: _C.UNKNOWN,
    Reason.REASON_INTERNAL: _C.INTERNAL,
    Reason.REASON_INVALID_REQUEST: _C.INVALID_ARGUMENT,
    Reason.REASON_SERVICE_UNAVAILABLE: _C.UNAVAILABLE,
    Reason.REASON_TOOL_MISSING: _C.FAILED_PRECONDITION,
    Reason.REASON_DEADLINE_EXCEEDED: _C.DEADLINE_EXCEEDED,
    Reason.REASON_CANCELLED: _C.CANCELLED,
    Reason.REASON_SERVICE_STOPPING: _C.UNAVAILABLE,
    Reason.REASON_VERSION_NOT_SUPPORTED: _C.FAILED_PRECONDITION,
    Reason.REASON_VCENTER_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_VCENTER_EXISTS: _C.ALREADY_EXISTS,
    Reason.REASON_VCENTER_IN_USE: _C.FAILED_PRECONDITION,
    Reason.REASON_VCENTER_UNREACHABLE: _C.UNAVAILABLE,
    Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED: _C.FAILED_PRECONDITION,
    Reason.REASON_VCENTER_LOGIN_FAILED: _C.FAILED_PRECONDITION,
    Reason.REASON_VCENTER_NO_PERMISSION: _C.FAILED_PRECONDITION,
    Reason.REASON_VSPHERE_FAULT: _C.FAILED_PRECONDITION,
    Reason.REASON_VCENTER_SESSION_LOST: _C.UNAVAILABLE,
    Reason.REASON_VCENTER_IDENTITY: _C.FAILED_PRECONDITION,
    Reason.REASON_DATASTORE_FULL: _C.RESOURCE_EXHAUSTED,
    Reason.REASON_VM_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_VM_AMBIGUOUS: _C.FAILED_PRECONDITION,
    Reason.REASON_VM_BUSY: _C.FAILED_PRECONDITION,
    Reason.REASON_VM_HAS_NO_PROTECTABLE_DISK: _C.FAILED_PRECONDITION,
    Reason.REASON_DISK_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_DISK_NEEDS_VDDK: _C.FAILED_PRECONDITION,
    Reason.REASON_DISK_MISMATCH: _C.FAILED_PRECONDITION,
    Reason.REASON_SNAPSHOT_FAILED: _C.FAILED_PRECONDITION,
    Reason.REASON_SNAPSHOT_LOST: _C.ABORTED,
    Reason.REASON_QUIESCE_FAILED: _C.FAILED_PRECONDITION,
    Reason.REASON_INCREMENTAL_NOT_POSSIBLE: _C.FAILED_PRECONDITION,
    Reason.REASON_CBT_INCONSISTENT: _C.DATA_LOSS,
    Reason.REASON_SNAPSHOT_TOO_OLD: _C.ABORTED,
    Reason.REASON_RESET_REFUSED: _C.FAILED_PRECONDITION,
    Reason.REASON_NOT_READ_WHOLE: _C.FAILED_PRECONDITION,
    Reason.REASON_JOB_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_JOB_ENDED: _C.FAILED_PRECONDITION,
    Reason.REASON_ATTEMPT_FENCED: _C.ABORTED,
    Reason.REASON_JOB_LOST: _C.ABORTED,
    Reason.REASON_HUB_RESTARTED: _C.ABORTED,
    Reason.REASON_POINT_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_POINT_HAS_DEPENDANTS: _C.FAILED_PRECONDITION,
    Reason.REASON_POINT_BUSY: _C.FAILED_PRECONDITION,
    Reason.REASON_POINT_CORRUPT: _C.DATA_LOSS,
    Reason.REASON_POINT_INCOMPLETE: _C.FAILED_PRECONDITION,
    Reason.REASON_REPOSITORY_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_REPOSITORY_UNAVAILABLE: _C.UNAVAILABLE,
    Reason.REASON_REPOSITORY_FULL: _C.RESOURCE_EXHAUSTED,
    Reason.REASON_EXPORT_FAILED: _C.INTERNAL,
    Reason.REASON_OUTPUT_EXISTS: _C.ALREADY_EXISTS,
    Reason.REASON_OUTPUT_UNWRITABLE: _C.FAILED_PRECONDITION,
    Reason.REASON_OUTPUT_FULL: _C.RESOURCE_EXHAUSTED,
    Reason.REASON_SITE_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_SITE_OFFLINE: _C.UNAVAILABLE,
    Reason.REASON_SITE_EXISTS: _C.ALREADY_EXISTS,
    Reason.REASON_TUNNEL_REFUSED: _C.PERMISSION_DENIED,
    Reason.REASON_TUNNEL_LOST: _C.UNAVAILABLE,
    Reason.REASON_CREDENTIAL_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_CREDENTIAL_EXISTS: _C.ALREADY_EXISTS,
    Reason.REASON_CREDENTIAL_UNREADABLE: _C.FAILED_PRECONDITION,
    Reason.REASON_CREDENTIAL_IN_USE: _C.FAILED_PRECONDITION,
    Reason.REASON_LEASE_INVALID: _C.PERMISSION_DENIED,
    Reason.REASON_LEASE_EXPIRED: _C.PERMISSION_DENIED,
    Reason.REASON_SIGNATURE_INVALID: _C.PERMISSION_DENIED,
    Reason.REASON_AGENT_UNKNOWN: _C.PERMISSION_DENIED,
    Reason.REASON_CLOCKS_DIFFER: _C.FAILED_PRECONDITION,
    Reason.REASON_SOURCE_READ_FAILED: _C.UNAVAILABLE,
    Reason.REASON_TARGET_WRITE_FAILED: _C.UNAVAILABLE,
    Reason.REASON_COPY_PROCESS_DIED: _C.INTERNAL,
    Reason.REASON_SOURCE_IGNORES_RANGES: _C.FAILED_PRECONDITION,
    Reason.REASON_SITE_REVOKED: _C.FAILED_PRECONDITION,
    Reason.REASON_INVITATION_INVALID: _C.PERMISSION_DENIED,
    Reason.REASON_INVITATION_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_FINGERPRINT_MISMATCH: _C.PERMISSION_DENIED,
    Reason.REASON_ENROLMENT_LIMITED: _C.RESOURCE_EXHAUSTED,
    Reason.REASON_KEY_PROVIDER_UNAVAILABLE: _C.UNAVAILABLE,
    Reason.REASON_KEY_PROVIDER_FORBIDDEN: _C.FAILED_PRECONDITION,
    Reason.REASON_KEY_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_KEY_IN_USE: _C.FAILED_PRECONDITION,
    Reason.REASON_CREDENTIAL_NOT_GRANTED: _C.PERMISSION_DENIED,
    Reason.REASON_LEASE_USED: _C.PERMISSION_DENIED,
    Reason.REASON_LEASE_REVOKED: _C.PERMISSION_DENIED,
    Reason.REASON_VCENTER_NOT_AS_BOUND: _C.FAILED_PRECONDITION,
    Reason.REASON_VCENTER_ACCOUNT_LOCKED: _C.FAILED_PRECONDITION,
    Reason.REASON_LEASES_LIMITED: _C.RESOURCE_EXHAUSTED,
    Reason.REASON_AGENT_KEYS_REPLACED: _C.ABORTED,
    Reason.REASON_NOT_PERMITTED: _C.PERMISSION_DENIED,
    Reason.REASON_NOT_AUTHENTICATED: _C.UNAUTHENTICATED,
    Reason.REASON_OPERATOR_NOT_FOUND: _C.NOT_FOUND,
    Reason.REASON_OPERATOR_EXISTS: _C.ALREADY_EXISTS,
    Reason.REASON_LISTENER_REFUSED: _C.FAILED_PRECONDITION,
    Reason.REASON_AUDIT_LOG_UNAVAILABLE: _C.UNAVAILABLE,
}

_RETRYABLE = frozenset({_C.UNAVAILABLE, _C.ABORTED, _C.DEADLINE_EXCEEDED})


class SendenseError(Exception):
    """Something did not work.

    Attributes:
        reason: stable, for programs.
        message: what happened and where, for people; never holds a secret.
        remedy: what to do, for people; may be empty.
        metadata: names (vm, vcenter, disk, point, job, site) and foreign words (fault, detail).
        retryable: whether the same request may succeed later without a person's doing.
    """

    def __init__(
        self,
        reason: Reason.ValueType,
        message: str,
        *,
        remedy: str = "",
        retryable: bool | None = None,
        **metadata: object,
    ) -> None:
        """`retryable` defaults to what the reason's gRPC code suggests."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedy = remedy
        self.metadata = {name: str(value) for name, value in metadata.items() if value is not None}
        self.retryable = self.code in _RETRYABLE if retryable is None else retryable

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC code of this error's reason."""
        return CODES.get(self.reason, grpc.StatusCode.UNKNOWN)

    @property
    def reason_name(self) -> str:
        """The reason as people and ErrorInfo spell it: `VM_NOT_FOUND`."""
        return reason_name(self.reason)

    def __str__(self) -> str:
        return f"{self.reason_name}: {self.message}"

    def to_failure(self) -> Failure:
        """This error as a message that a job or an event can carry."""
        return Failure(
            reason=self.reason,
            message=self.message,
            remedy=self.remedy,
            metadata=self.metadata,
            retryable=self.retryable,
        )

    @classmethod
    def from_failure(cls, failure: Failure) -> SendenseError:
        """The error that a job or an event carried."""
        error = cls(
            failure.reason,
            failure.message,
            remedy=failure.remedy,
            retryable=failure.retryable,
        )
        error.metadata = dict(failure.metadata)
        return error

    def to_status(self) -> status_pb2.Status:
        """This error as the status of a failed call, with one google.rpc.ErrorInfo."""
        info = error_details_pb2.ErrorInfo(
            reason=self.reason_name,
            domain=DOMAIN,
            metadata={
                **self.metadata,
                **({_REMEDY_KEY: self.remedy} if self.remedy else {}),
                _RETRYABLE_KEY: str(self.retryable).lower(),
            },
        )
        detail = any_pb2.Any()
        detail.Pack(info)
        number: tuple[int, str] = self.code.value
        return status_pb2.Status(code=number[0], message=self.message, details=[detail])

    @classmethod
    def from_rpc(cls, error: grpc.RpcError, *, doing: str = "") -> SendenseError:
        """The error behind a failed call.

        Args:
            error: what the call raised.
            doing: what was being done, for calls that failed without a reason of ours, as
                "asking the credentials service for a lease".
        """
        assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
        info = _error_info(error)
        code = error.code()
        text = error.details() or code.name
        if info is not None and info.domain == DOMAIN:
            metadata = dict(info.metadata)
            remedy = metadata.pop(_REMEDY_KEY, "")
            retryable = metadata.pop(_RETRYABLE_KEY, "false") == "true"
            known = _PREFIX + info.reason in Reason.keys()  # noqa: SIM118 - not a dict
            reason = Reason.Value(_PREFIX + info.reason) if known else Reason.REASON_UNSPECIFIED
            mine = cls(reason, text, remedy=remedy, retryable=retryable)
            mine.metadata = metadata
            return mine
        where = f"{doing}: {text}" if doing else text
        return cls(_foreign(code, text), where, grpc_code=code.name)


_FOREIGN = {
    grpc.StatusCode.UNAVAILABLE: Reason.REASON_SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.REASON_DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: Reason.REASON_SERVICE_UNAVAILABLE,
    grpc.StatusCode.INVALID_ARGUMENT: Reason.REASON_INVALID_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: Reason.REASON_INVALID_REQUEST,
    # There are too many calls at this moment.
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.REASON_SERVICE_UNAVAILABLE,
}


def _foreign(code: grpc.StatusCode, text: str) -> Reason.ValueType:
    """Of a failure that gRPC itself tells of."""
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in text:
        return Reason.REASON_INTERNAL  # it will not be smaller at the next try
    return _FOREIGN.get(code, Reason.REASON_INTERNAL)


def reason_name(reason: Reason.ValueType) -> str:
    """`VM_NOT_FOUND` for REASON_VM_NOT_FOUND; numbers a newer peer made are kept as digits."""
    try:
        return Reason.Name(reason).removeprefix(_PREFIX)
    except ValueError:
        return str(reason)


def invalid(field: str, problem: str, *, remedy: str = "") -> SendenseError:
    """INVALID_REQUEST that names the field of the request."""
    return SendenseError(Reason.REASON_INVALID_REQUEST, f"{field}: {problem}", remedy=remedy, field=field)


def _error_info(error: grpc.Call | grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    if isinstance(error, grpc.aio.AioRpcError):
        blob = next(
            (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"),
            None,
        )
        if not isinstance(blob, bytes):
            return None
        status = status_pb2.Status.FromString(blob)
    else:
        parsed = rpc_status.from_call(error)
        if parsed is None:
            return None
        status = parsed
    assert status.code != code_pb2.OK
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    return None
