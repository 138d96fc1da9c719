# SPDX-License-Identifier: Apache-2.0
"""Managed objects: properties that can be read by path, methods that can be called, tasks that run."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pyVmomi import VmomiSupport, vim, vmodl

from sendense_lab.vcenter.soap import fault, make, now, typed

log = logging.getLogger(__name__)

_RECENT_TASKS = 20
_DESCRIPTIONS = {
    "CreateSnapshot_Task": "VirtualMachine.createSnapshot",
    "ReconfigVM_Task": "VirtualMachine.reconfigure",
    "RemoveSnapshot_Task": "vm.Snapshot.remove",
}
"""Of methods: the descriptionId of their tasks."""


class Registry:
    """All managed objects, one lock, and the news that something has changed."""

    def __init__(self) -> None:
        self.objects: dict[str, ManagedObject] = {}
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._generation = 0
        self.task_delays_s: dict[str, float] = {}
        """Seconds that tasks of a method take longer than they must."""
        self.task_fault: Callable[[str], Any] = lambda method: None
        """What a task of a method is to fail with, if it is."""
        self.objects_per_page = 100
        """Objects in one answer of the PropertyCollector, at most."""
        self._methods: dict[str, str] = {}
        """Of tasks, by object ID."""
        self._busy: dict[str, str] = {}
        """By object ID: the task that has it to itself."""

    def number(self) -> int:
        """The next one."""
        return next(self._numbers)

    def find(self, reference: Any) -> ManagedObject:
        """The object behind a reference; ManagedObjectNotFound."""
        found = self.objects.get(reference._moId)  # noqa: SLF001
        if found is None:
            raise vmodl.fault.ManagedObjectNotFound(
                obj=reference,
                msg=f"The object '{reference}' has already been deleted or has not been completely created",
            )
        return found

    def changed(self) -> None:
        """Wakes who waits for updates."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    @property
    def generation(self) -> int:
        """Grows with each change."""
        return self._generation

    def wait(self, generation: int, timeout_s: float) -> bool:
        """Whether something changed since `generation`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._generation != generation, max(0.0, timeout_s))

    def running_tasks(self) -> list[str]:
        """Methods whose tasks have not ended."""
        return [self._methods[task] for task in self._busy.values()]

    def start_task(self, entity: ManagedObject, method: str, work: Callable[[], Any]) -> Any:
        """Runs `work` in a thread as a task of vSphere; gives the task's reference.

        Raises:
            vim.fault.TaskInProgress: another one runs on `entity`.
        """
        if running := self._busy.get(entity.moid):
            raise vim.fault.TaskInProgress(
                task=self.objects[running].reference, msg="Another task is already in progress."
            )
        task = ManagedObject(self, vim.Task, f"task-{self.number()}")
        info = make(
            vim.TaskInfo,
            key=task.moid,
            task=task.reference,
            descriptionId=_DESCRIPTIONS.get(method, method),
            name=VmomiSupport.GuessWsdlMethod(method),
            entity=entity.reference,
            entityName=entity.get("name") if "name" in entity.properties else "",
            state="queued",
            cancelled=False,
            cancelable=False,
            reason=vim.TaskReasonUser(userName="lab"),
            eventChainId=1,
        )
        task.properties["info"] = info
        self._busy[entity.moid] = task.moid
        self._methods[task.moid] = method
        recent = entity.properties.setdefault("recentTask", [])
        recent.append(task.reference)
        del recent[:-_RECENT_TASKS]

        def run() -> None:
            with self.lock:
                info.state, info.startTime, info.progress = "running", now(), 1
            self.changed()
            began = time.monotonic()
            while time.monotonic() < began + self.task_delays_s.get(method, 0.0):
                time.sleep(0.01)  # a delay that is taken back ends at once
            try:
                with self.lock:
                    planned = self.task_fault(method)
                    if planned is not None:
                        raise planned
                    result = work()
                outcome: dict[str, Any] = {"state": "success", "progress": 100}
                if result is not None:
                    outcome["result"] = result
            except vmodl.MethodFault as error:
                outcome = {"state": "error", "error": error}
            except Exception as error:
                log.exception("defect in %s", method)
                outcome = {"state": "error", "error": fault("vmodl.fault.SystemError", repr(error))}
            with self.lock:
                self._busy.pop(entity.moid, None)
                info.completeTime = now()
                for name, value in outcome.items():
                    setattr(info, name, value)
            self.changed()

        threading.Thread(target=run, name=task.moid, daemon=True).start()
        return task.reference


class ManagedObject:
    """One object; `properties` hold values, or functions that give them."""

    def __init__(self, registry: Registry, kind: Any, moid: str, **properties: Any) -> None:
        self.registry = registry
        self.kind = kind
        self.moid = moid
        self.reference = kind(moid)
        self.properties: dict[str, Any] = properties
        registry.objects[moid] = self

    def get(self, path: str, made: dict[str, Any] | None = None) -> Any:
        """The value at a dotted path; InvalidProperty when there is no such thing.

        Args:
            path: as "config.hardware.device".
            made: keeps what was made of this object for one answer.
        """
        head, *rest = path.split(".")
        try:
            declared = self.kind._GetPropertyInfo(head).type  # noqa: SLF001
        except AttributeError:
            raise _no_property(path) from None
        if made is not None and head in made:
            value = made[head]
        else:
            value = self.properties.get(head)
            if callable(value) and not isinstance(value, VmomiSupport.ManagedObject):
                value = value()
            if made is not None:
                made[head] = value
        for segment in rest:
            if value is None:
                break
            try:
                declared = type(value)._GetPropertyInfo(segment).type  # noqa: SLF001
            except AttributeError:
                raise _no_property(path) from None
            value = getattr(value, segment)
        return None if isinstance(value, list) and not value else typed(value, declared)

    def remove(self) -> None:
        """It exists no more."""
        self.registry.objects.pop(self.moid, None)


def _no_property(path: str) -> Any:
    return vmodl.query.InvalidProperty(name=path, msg=f"The property {path} is invalid")
