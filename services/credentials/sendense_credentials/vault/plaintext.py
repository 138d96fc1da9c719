# SPDX-License-Identifier: Apache-2.0
"""What an envelope holds, and what is sealed to an agent: a `Secret` message."""

from __future__ import annotations

import sendense.credentials.v1.credential_service_pb2 as pb
from sendense_credentials.domain.endpoint import Endpoint
from sendense_credentials.domain.secret import Secret


def to_plaintext(secret: Secret) -> bytes:
    """The secret as bytes."""
    message = pb.Secret(username=secret.username, password=secret.password)
    if secret.endpoint is not None:
        endpoint = secret.endpoint
        message.endpoint.host, message.endpoint.port = endpoint.host, endpoint.port
        if endpoint.ca_pem:
            message.endpoint.ca_pem = endpoint.ca_pem
        else:
            message.endpoint.certificate_sha256 = endpoint.certificate_sha256
    return message.SerializeToString()


def from_plaintext(plaintext: bytes) -> Secret:
    """What `to_plaintext` was given; also what was written before there were endpoints."""
    return from_message(pb.Secret.FromString(plaintext))


def from_message(message: pb.Secret) -> Secret:
    """The secret, whose `repr` shows nothing: the message's own would.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    endpoint = endpoint_of(message.endpoint) if message.HasField("endpoint") else None
    return Secret(message.username, message.password, endpoint)


def endpoint_of(message: pb.Endpoint) -> Endpoint:
    """The endpoint.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    return Endpoint(message.host, message.port, message.ca_pem, message.certificate_sha256)
