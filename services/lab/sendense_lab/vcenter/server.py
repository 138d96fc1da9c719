# SPDX-License-Identifier: Apache-2.0
"""The vCenter: sessions, the fixed objects of its API, and how a call is answered."""

from __future__ import annotations

import collections
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab.vcenter.datastore import DatastoreSpec
from sendense_lab.vcenter.events import EventPlan
from sendense_lab.vcenter.faults import FaultPlan
from sendense_lab.vcenter.inventory import DATASTORE, HOST, Datacenter
from sendense_lab.vcenter.objects import ManagedObject, Registry
from sendense_lab.vcenter.property_collector import PropertyCollector
from sendense_lab.vcenter.soap import RELEASES, fault, make, now, parse_request, render, render_fault

log = logging.getLogger(__name__)

_WITHOUT_LOGIN = {"RetrieveServiceContent", "Login"}
_LOCKED = "User account is locked. Please contact your administrator."
_LOGIN_FAILED = "Cannot complete login due to an incorrect user name or password."


class Caller:
    """Who calls: the session of one request, and a cookie to set."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.new_session = ""


class Vcenter:
    """One simulated vCenter."""

    def __init__(
        self,
        files: Path,
        username: str,
        password: str,
        *,
        version: str = "8.0",
        hosts: Sequence[str] = (HOST,),
        datastores: Sequence[DatastoreSpec] = (DatastoreSpec(DATASTORE),),
    ) -> None:
        """An empty vCenter.

        Args:
            files: what is on its first datastore.
            username: the only one.
            password: of that user.
            version: one of RELEASES.
            hosts: names of its ESXi hosts.
            datastores: at least one.
        """
        self.api_version = RELEASES[version]
        self.registry = Registry()
        self.faults = FaultPlan()
        self.events = EventPlan()
        self.registry.task_fault = self._task_fault
        self.username, self.password = username, password
        self.sessions: dict[str, Any] = {}
        self.lock_after: int | None = 5
        """Wrong passwords in a row until the account is locked, as with single sign-on; None: never."""
        self.tells_locked = False
        """Whether a login to a locked account is told so; else it looks like a wrong password."""
        self.password_expired = False
        """Whether right passwords are refused as expired."""
        self.session_calls = 0
        """A session ends after so many calls of the API; 0: never."""
        self.session_idle_seconds = 0.0
        """A session ends when it was silent for so long; 0: never."""
        self.read_seconds = 0.0
        """So long waits each request for a datastore's file."""
        self.login_seconds = 0.0
        """So long waits each login until it is answered, right or wrong."""
        self._used: dict[str, tuple[int, float]] = {}
        """By session: calls so far, and when the last one was."""
        self.missing_privileges: list[str] = []
        """What the user may not do, as far as he asks; calls are not refused for it."""
        self.missing_privileges_on: dict[str, list[str]] = {}
        """The same, by name of a VM or datastore."""
        self.counters: collections.Counter[str] = collections.Counter()
        self._wrong_in_a_row = 0
        self._counting = threading.Lock()
        self.datacenter = Datacenter(self.registry, files, hosts, datastores)
        self.instance_uuid = str(uuid.uuid4())
        self._content = self._make_fixed_objects()

    def count(self, what: str, by: int = 1) -> None:
        """Adds to a counter."""
        with self._counting:
            self.counters[what] += by

    def expire_silent(self) -> None:
        """Ends the sessions that were silent for too long, as a vCenter does by itself."""
        if self.session_idle_seconds > 0:
            for session, (_, last_s) in list(self._used.items()):
                if time.monotonic() - last_s > self.session_idle_seconds:
                    self.sessions.pop(session, None)
                    self._used.pop(session, None)

    def knows(self, session: str) -> bool:
        """Whether a session cookie is good."""
        return session in self.sessions

    def use(self, session: str, calls_more: int = 1) -> bool:
        """Whether a session cookie is good for one thing more; of which calls of the API are counted."""
        calls, last_s = self._used.get(session, (0, time.monotonic()))
        silent_s = time.monotonic() - last_s
        if (calls_more and 0 < self.session_calls <= calls) or 0 < self.session_idle_seconds < silent_s:
            self.sessions.pop(session, None)
        if session not in self.sessions:
            self._used.pop(session, None)
            return False
        self._used[session] = calls + calls_more, time.monotonic()
        return True

    def call(self, caller: Caller, body: bytes) -> tuple[int, bytes]:
        """(HTTP status, body) of one request to /sdk."""
        try:
            method, reference, arguments = parse_request(body)
            self.count(f"call {method}")
            moid = reference._moId  # noqa: SLF001
            public = method in _WITHOUT_LOGIN or (method == "Fetch" and moid == "ServiceInstance")
            self.events.happen(method)
            if method == "Login":
                time.sleep(self.login_seconds)  # alone: what others ask goes on meanwhile
            if not public and not self.use(caller.session):
                raise vim.fault.NotAuthenticated(
                    object=reference, privilegeId="System.View", msg="The session is not authenticated."
                )
            if planned := self._planned_fault(method):
                raise planned
            return 200, render(method, self._answer(caller, method, reference, arguments))
        except vmodl.MethodFault as error:
            return 500, render_fault(error)
        except Exception as error:
            log.exception("defect of the simulated vCenter")
            return 500, render_fault(fault("vmodl.fault.SystemError", f"A general system error: {error!r}"))

    def _task_fault(self, method: str) -> Any:
        self.events.happen(f"task {method}")
        return self._planned_fault(f"task {method}")

    def _planned_fault(self, operation: str) -> Any:
        planned = self.faults.due(operation)
        return planned and fault(planned.fault, planned.message or "Injected by the lab.")

    def _answer(self, caller: Caller, method: str, reference: Any, arguments: dict[str, Any]) -> Any:
        item = self.registry.find(reference)
        if method == "Fetch":
            with self.registry.lock:
                return item.get(arguments["prop"])
        function = getattr(item, method, None)
        if function is None:
            raise vmodl.fault.MethodNotFound(
                receiver=reference, method=method, msg=f"The lab does not implement {method}"
            )
        if method.startswith("WaitForUpdates"):
            return function(caller, **arguments)
        with self.registry.lock:
            return function(caller, **arguments)

    def _make_fixed_objects(self) -> Any:
        registry = self.registry
        collector = PropertyCollector(registry, "propertyCollector")
        sessions = _SessionManager(self)
        views = _ViewManager(registry, vim.view.ViewManager, "ViewManager")
        search = _SearchIndex(self)
        privileges = _AuthorizationManager(self)
        release = self.api_version.rpartition(".")[0]
        about = vim.AboutInfo(
            name="VMware vCenter Server",
            fullName=f"VMware vCenter Server {release} (simulated by sendense-lab)",
            vendor="VMware, Inc.",
            version=release,
            build="0",
            osType="linux-x64",
            productLineId="vpx",
            apiType="VirtualCenter",
            apiVersion=self.api_version,
            instanceUuid=self.instance_uuid,
        )
        content = vim.ServiceInstanceContent(
            rootFolder=self.datacenter.root.reference,
            propertyCollector=collector.reference,
            sessionManager=sessions.reference,
            viewManager=views.reference,
            searchIndex=search.reference,
            authorizationManager=privileges.reference,
            about=about,
        )
        service = _ServiceInstance(
            registry, vim.ServiceInstance, "ServiceInstance", content=content, serverClock=now
        )
        service.content = content
        return content

    def login(self, username: str, password: str) -> str:
        """A new session; InvalidLogin."""
        self.count("logins")
        locked = self.lock_after is not None and self._wrong_in_a_row >= self.lock_after
        if locked or (username, password) != (self.username, self.password):
            self._wrong_in_a_row += 1
            self.count("logins refused")
            raise vim.fault.InvalidLogin(msg=_LOCKED if locked and self.tells_locked else _LOGIN_FAILED)
        if self.password_expired:
            self.count("logins refused")
            raise vim.fault.PasswordExpired(msg="The password of the user has expired.")
        self._wrong_in_a_row = 0
        key = str(uuid.uuid4())
        self.sessions[key] = vim.UserSession(
            key=key,
            userName=username,
            fullName=username,
            loginTime=now(),
            lastActiveTime=now(),
            locale="en",
            messageLocale="en",
        )
        self._used[key] = 0, time.monotonic()
        return key

    def unlock(self) -> None:
        """An administrator unlocked the account."""
        self._wrong_in_a_row = 0


class _ServiceInstance(ManagedObject):
    content: Any = None

    def RetrieveServiceContent(self, caller: Caller) -> Any:
        return self.content

    def CurrentTime(self, caller: Caller) -> Any:
        return now()


class _SessionManager(ManagedObject):
    def __init__(self, vcenter: Vcenter) -> None:
        super().__init__(
            vcenter.registry,
            vim.SessionManager,
            "SessionManager",
            sessionList=lambda: list(vcenter.sessions.values()),
        )
        self._vcenter = vcenter

    def Login(self, caller: Caller, userName: str, password: str, locale: str) -> Any:
        caller.new_session = self._vcenter.login(userName, password)
        return self._vcenter.sessions[caller.new_session]

    def Logout(self, caller: Caller) -> None:
        self._vcenter.sessions.pop(caller.session, None)

    def TerminateSession(self, caller: Caller, sessionId: list[str]) -> None:
        for key in sessionId:
            if self._vcenter.sessions.pop(key, None) is None:
                raise make(vim.fault.NotFound, msg=f"There is no session {key}.")

    def SessionIsActive(self, caller: Caller, sessionID: str, userName: str) -> bool:
        return self._vcenter.knows(sessionID)


class _ViewManager(ManagedObject):
    def CreateContainerView(self, caller: Caller, container: Any, type: Any, recursive: bool) -> Any:
        view = _ContainerView(
            self.registry,
            vim.view.ContainerView,
            f"view-{self.registry.number()}",
            container=container,
            type=type,
            recursive=recursive,
        )
        kinds = tuple(type) if type else (vim.ManagedEntity,)
        view.properties["view"] = lambda: [
            each.reference
            for each in list(self.registry.objects.values())
            if issubclass(each.kind, vim.ManagedEntity)
            and issubclass(each.kind, kinds)
            and self._is_below(each, container, recursive=recursive)
        ]
        return view.reference

    def _is_below(self, item: ManagedObject, container: Any, *, recursive: bool) -> bool:
        """A container is not in itself."""
        while (parent := item.properties.get("parent")) is not None:
            if parent == container:
                return True
            if not recursive:
                return False
            item = self.registry.find(parent)
        return False


class _ContainerView(ManagedObject):
    def DestroyView(self, caller: Caller) -> None:
        self.remove()


class _SearchIndex(ManagedObject):
    def __init__(self, vcenter: Vcenter) -> None:
        super().__init__(vcenter.registry, vim.SearchIndex, "SearchIndex")
        self._vcenter = vcenter

    def FindByUuid(
        self,
        caller: Caller,
        datacenter: Any,
        uuid: str,
        vmSearch: bool,
        instanceUuid: bool,
    ) -> Any:
        for machine in self._vcenter.datacenter.machines:
            if uuid == (machine.instance_uuid if instanceUuid else machine.bios_uuid):
                return machine.reference
        return None


class _AuthorizationManager(ManagedObject):
    def __init__(self, vcenter: Vcenter) -> None:
        super().__init__(vcenter.registry, vim.AuthorizationManager, "AuthorizationManager")
        self._vcenter = vcenter

    def HasPrivilegeOnEntity(self, caller: Caller, entity: Any, sessionId: str, privId: Any) -> Any:
        item = self.registry.find(entity)
        name = getattr(item, "shown_name", "") or item.properties.get("name", "")
        there = self._vcenter.missing_privileges_on.get(name, [])
        return [each not in (*self._vcenter.missing_privileges, *there) for each in privId]

    def HasPrivilegeOnEntities(self, caller: Caller, entity: Any, sessionId: str, privId: Any) -> Any:
        return [
            vim.AuthorizationManager.EntityPrivilege(
                entity=each,
                privAvailability=[
                    vim.AuthorizationManager.PrivilegeAvailability(privId=name, isGranted=has)
                    for name, has in zip(
                        privId, self.HasPrivilegeOnEntity(caller, each, sessionId, privId), strict=True
                    )
                ],
            )
            for each in entity
        ]
