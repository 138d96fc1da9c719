# SPDX-License-Identifier: Apache-2.0
"""Fields of messages, checked and converted."""

from __future__ import annotations

import uuid

from google.protobuf.timestamp_pb2 import Timestamp

import sendense.credentials.v1.credential_service_pb2 as pb
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_common.errors import invalid
from sendense_common.keys import AgentPublicKeys
from sendense_credentials.domain.agent import Agent, check_agent_id
from sendense_credentials.domain.credential import Credential


def to_uuid(field: str, text: str) -> str:
    """`text`, if it is a UUID in its usual spelling."""
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise invalid(field, "must be a UUID, in lower case and with dashes")


def to_operation(operation: Operation.ValueType) -> int:
    """`operation`, if it is one that a lease can be for."""
    if operation not in Operation.values() or operation == Operation.OPERATION_UNSPECIFIED:
        raise invalid("operation", "must be one that this service knows")
    return int(operation)


def to_agent(message: pb.Agent) -> Agent:
    """An agent with usable keys."""
    try:
        keys = AgentPublicKeys(message.signing_public_key, message.sealing_public_key)
    except ValueError as error:
        raise invalid("agent", str(error)) from error
    return Agent(check_agent_id(message.agent_id), keys)


def from_agent(agent: Agent) -> pb.Agent:
    """As the contract says it."""
    return pb.Agent(
        agent_id=agent.agent_id,
        signing_public_key=agent.keys.signing,
        sealing_public_key=agent.keys.sealing,
    )


def from_credential(credential: Credential) -> pb.Credential:
    """As the contract says it: nothing of the secret."""
    return pb.Credential(
        credential_id=credential.credential_id,
        name=credential.name,
        key_id=credential.envelope.key_id,
        create_time=from_us(credential.create_time_us),
        rotate_time=from_us(credential.rotate_time_us),
        agent_ids=credential.agent_ids,
        bound_to=credential.bound_to,
    )


def from_us(time_us: int) -> Timestamp:
    """Microseconds since 1970 as a timestamp."""
    made = Timestamp()
    made.FromMicroseconds(time_us)
    return made


def to_ns(field: str, time: Timestamp) -> int:
    """A timestamp as nanoseconds since 1970 that fit into 8 bytes."""
    try:
        time_ns = time.ToNanoseconds()
    except ValueError as error:
        raise invalid(field, "is not a valid time") from error
    if not 0 < time_ns < 2**63:
        raise invalid(field, "must be set, to a time between 1970 and 2262")
    return time_ns
