# SPDX-License-Identifier: Apache-2.0
"""Talking to an OpenBao or Vault server: TLS, a token that is kept valid, and its refusals in words of ours.

Everything here blocks, for at most a few seconds. The token is in this process's memory and nowhere else;
it comes from a file, or from a login with a role whose two IDs are in files. Nothing is taken from the
environment: no proxy, no token, no address. A redirect is not followed, for the token would go with it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hvac
import requests
from hvac import exceptions

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.private_file import read_private_file
from sendense_credentials.domain.clock import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")
Answer = dict[str, Any]

_TIMEOUT_S = 5
_REFUSED = (exceptions.Forbidden, exceptions.Unauthorized)
_SECOND_US = 1_000_000


@dataclass(frozen=True)
class TransitOptions:
    """Where the keys are, and how one gets in."""

    address: str
    """https://HOST[:PORT]"""
    ca_file: Path
    """PEM: the authorities that its certificate may be signed by."""
    mount: str = "transit"
    """Path of the transit engine."""
    key: str = "sendense"
    """Name of the key there."""
    token_file: Path | None = None
    """Holds a token; or, instead:"""
    role_id_file: Path | None = None
    """Holds the ID of an AppRole."""
    secret_id_file: Path | None = None
    """Holds a secret ID of it."""
    approle_mount: str = "approle"
    """Path of the AppRole login."""


@dataclass(frozen=True)
class _Token:
    """One that the server took."""

    renewable: bool
    ttl_us: int
    """From `taken_us` on; 0: it does not end, or nobody says when."""
    taken_us: int

    @property
    def end_us(self) -> int | None:
        return self.taken_us + self.ttl_us if self.ttl_us else None

    def is_half_over(self, now_us: int) -> bool:
        return bool(self.ttl_us) and now_us >= self.taken_us + self.ttl_us // 2

    def is_over(self, now_us: int) -> bool:
        return self.end_us is not None and now_us >= self.end_us


class TransitSession:
    """One server, one key, one token at a time. May be used by several threads."""

    def __init__(self, options: TransitOptions, clock: Clock) -> None:
        self.options = options
        self._clock = clock
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(options.ca_file)
        self._client = hvac.Client(
            url=options.address, token="", session=self._session, timeout=_TIMEOUT_S, allow_redirects=False
        )
        self._changing = threading.RLock()
        self._token: _Token | None = None

    @property
    def place(self) -> str:
        """The key, for people."""
        return f"{self.options.address}, {self.options.mount}/keys/{self.options.key}"

    @property
    def token_end_us(self) -> int | None:
        """When the token ends; None when it does not, or is renewed before."""
        token = self._token
        return None if token is None or token.renewable or self._logs_in else token.end_us

    def close(self) -> None:
        """Ends its connections."""
        self._session.close()

    def ask(self, doing: str, call: Callable[[hvac.Client], Any]) -> Answer:
        """What the server answers to `call`; a refused one is made once more where there is a fresh token.

        Args:
            doing: the right that the token needs, as "update transit/encrypt/sendense".
            call: makes one request.

        Raises:
            SendenseError: KEY_PROVIDER_UNAVAILABLE, KEY_PROVIDER_FORBIDDEN, KEY_NOT_FOUND.
            exceptions.InvalidRequest: the server does not like what it was given.
        """
        with self._in_words(doing):
            used = self._usable_token()
            try:
                return self._checked(call(self._client))
            except _REFUSED:
                if not self._fresh_token(used):
                    raise
            return self._checked(call(self._client))

    def keep_token(self) -> None:
        """Renews the token when half of its time is over, or takes another one where it cannot be renewed.

        Raises:
            SendenseError: as `ask`.
        """
        with self._in_words("update auth/token/renew-self"), self._changing:
            token, now_us = self._token, self._clock()
            if token is None or not token.is_half_over(now_us):
                return
            if token.renewable:
                with contextlib.suppress(*_REFUSED, exceptions.InvalidRequest):
                    answer = self._checked(self._client.auth.token.renew_self())
                    self._take(answer["auth"])
                    # Near its greatest age it is renewed for less and less.
                    if self._token is not None and self._token.ttl_us > token.ttl_us // 2:
                        log.debug("renewed the token for %d s", self._token.ttl_us // _SECOND_US)
                        return
            if self._logs_in or self._client.token != self._token_in_file():
                self._take_token()

    @property
    def _logs_in(self) -> bool:
        return self.options.token_file is None

    def _usable_token(self) -> str:
        with self._changing:
            if self._token is None or self._token.is_over(self._clock()):
                self._take_token()
            return str(self._client.token)

    def _fresh_token(self, refused: str) -> bool:
        """Another one than the refused one, if there is one."""
        with self._changing:
            if self._client.token != refused:
                return True  # another thread was faster
            if not self._logs_in and self._token_in_file() == refused:
                return False
            self._take_token()
            return True

    def _take_token(self) -> None:
        if self._logs_in:
            self._log_in()
            return
        self._client.token = self._token_in_file()
        try:
            told = self._checked(self._client.auth.token.lookup_self())["data"]
        except _REFUSED:
            told = {}  # not every token may look itself up
        self._take({"lease_duration": told.get("ttl"), "renewable": told.get("renewable")})

    def _log_in(self) -> None:
        options = self.options
        assert options.role_id_file is not None
        assert options.secret_id_file is not None
        role_id, secret_id = _read(options.role_id_file), _read(options.secret_id_file)
        try:
            answer = self._checked(
                self._client.auth.approle.login(
                    role_id, secret_id, use_token=False, mount_point=options.approle_mount
                )
            )
        except (*_REFUSED, exceptions.InvalidRequest) as error:
            raise _forbidden(
                f"{options.address} refuses the login with the AppRole: {_words(error)}",
                f"Check {options.role_id_file} and {options.secret_id_file}: a secret ID can expire, and can "
                "be used up. A new one in the file is taken without a restart.",
            ) from error
        self._client.token = answer["auth"]["client_token"]
        self._take(answer["auth"])
        log.info("logged in to %s with the AppRole", options.address)

    def _token_in_file(self) -> str:
        assert self.options.token_file is not None
        return _read(self.options.token_file)

    def _take(self, auth: Answer) -> None:
        ttl_us = int(auth.get("lease_duration") or 0) * _SECOND_US
        self._token = _Token(bool(auth.get("renewable")), ttl_us, self._clock())

    def _checked(self, answer: Any) -> Answer:
        if isinstance(answer, dict):
            return answer
        if answer.status_code == requests.codes.no_content:
            return {}
        raise _unavailable(
            f"{self.options.address} answers with status {answer.status_code}, not as OpenBao or Vault do",
            "Name the address of the server itself, and of an active one: redirects are not followed.",
        )

    @contextlib.contextmanager
    def _in_words(self, doing: str) -> Iterator[None]:
        address = self.options.address
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise _unavailable(
                f"the certificate of {address} is not trusted, or not that host's",
                f"Compare it with {self.options.ca_file}: the authority that signed it, and the name in it.",
            ) from error
        except (requests.exceptions.RequestException, OSError) as error:
            raise _unavailable(
                f"{address} does not answer",
                "Start it, or mend the way to it; nothing has to be restarted here then.",
            ) from error
        except _REFUSED as error:
            raise self._refused(doing) from error
        except exceptions.InvalidPath as error:
            raise SendenseError(
                Reason.REASON_KEY_NOT_FOUND,
                f"{address} has no key {self.options.mount}/keys/{self.options.key}",
                remedy=f"Make it: bao write -f {self.options.mount}/keys/{self.options.key} derived=true",
            ) from error
        except exceptions.InvalidRequest:
            raise
        except exceptions.VaultDown as error:
            raise _unavailable(
                f"{address} is sealed, or standing by", "Unseal it: bao operator unseal"
            ) from error
        except exceptions.VaultError as error:
            raise _unavailable(
                f"{address} answers with an error: {_words(error)}", "Its own log says more."
            ) from error

    def _refused(self, doing: str) -> SendenseError:
        """Whether the token is not valid, or may not do just this."""
        address = self.options.address
        try:
            self._client.auth.token.lookup_self()
        except (exceptions.VaultError, requests.exceptions.RequestException):
            if self._logs_in:
                return _forbidden(
                    f"{address} refuses the token that it gave at the login",
                    f"Give the role a policy that allows: {doing}.",
                )
            return _forbidden(
                f"{address} refuses the token in {self.options.token_file}: it has expired or was revoked",
                "Put a valid one into the file: it is taken without a restart.",
            )
        return _forbidden(
            f"the token may not {doing} at {address}", f"Give it a policy that allows: {doing}."
        )


def _read(file: Path) -> str:
    try:
        text = read_private_file(file).decode("ascii").strip()
    except (OSError, UnicodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _forbidden(f"{file} cannot be read: {what}", "Put it there, for this user alone.") from None
    if not text or not text.isprintable():
        raise _forbidden(f"{file} does not hold one line of text", "Put it there, for this user alone.")
    return text


def _words(error: Exception) -> str:
    """What the server said, without the address."""
    return "; ".join(getattr(error, "errors", None) or ()) or type(error).__name__


def _unavailable(problem: str, remedy: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_KEY_PROVIDER_UNAVAILABLE,
        f"passwords cannot be opened or stored now: {problem}",
        remedy=remedy,
    )


def _forbidden(problem: str, remedy: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_KEY_PROVIDER_FORBIDDEN,
        f"passwords cannot be opened or stored now: {problem}",
        remedy=remedy,
    )


def unavailable_for(place: str, seconds: float) -> SendenseError:
    """KEY_PROVIDER_UNAVAILABLE: no answer in time."""
    return _unavailable(
        f"{place} does not answer within {seconds:.0f} s",
        "Start it, or mend the way to it; nothing has to be restarted here then.",
    )
