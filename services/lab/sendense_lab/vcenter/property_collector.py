# SPDX-License-Identifier: Apache-2.0
"""The PropertyCollector: how clients read inventory and wait for tasks."""

from __future__ import annotations

import time
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab.vcenter.objects import ManagedObject, Registry
from sendense_lab.vcenter.soap import invalid_argument, serialize

_PC = vmodl.query.PropertyCollector
_LONGEST_WAIT_S = 600.0

_Content = dict[str, tuple[ManagedObject, dict[str, Any]]]


class PropertyCollector(ManagedObject):
    """One session's, or the service's own."""

    def __init__(self, registry: Registry, moid: str) -> None:
        super().__init__(registry, _PC, moid)
        self._rest: dict[str, tuple[list[Any], int]] = {}
        self._filters: dict[str, _Filter] = {}
        self._version = 0

    # --- methods of the API ---

    def RetrievePropertiesEx(self, context: Any, specSet: Any, options: Any) -> Any:
        """First page."""
        found = self._retrieve(specSet)
        wanted = (options and options.maxObjects) or self.registry.objects_per_page
        return self._page(found, min(wanted, self.registry.objects_per_page)) if found else None

    def ContinueRetrievePropertiesEx(self, context: Any, token: str) -> Any:
        """Next page."""
        if token not in self._rest:
            raise invalid_argument("token")
        return self._page(*self._rest.pop(token))

    def RetrieveProperties(self, context: Any, specSet: Any) -> Any:
        """All at once."""
        return self._retrieve(specSet)

    def CreateFilter(self, context: Any, spec: Any, partialUpdates: bool) -> Any:
        """Something to wait for."""
        made = _Filter(self.registry, spec, self._filters)
        return made.reference

    def WaitForUpdatesEx(self, context: Any, version: str, options: Any) -> Any:
        """Waits for what changed since `version`; None when nothing does in time."""
        longest = (
            options.maxWaitSeconds if options and options.maxWaitSeconds is not None else _LONGEST_WAIT_S
        )
        deadline = time.monotonic() + longest
        if not version:
            for each in self._filters.values():
                each.seen.clear()
        while True:
            generation = self.registry.generation
            with self.registry.lock:
                updates = [
                    _PC.FilterUpdate(filter=each.reference, objectSet=changes)
                    for each in list(self._filters.values())
                    if (changes := each.changes(_content(self.registry, each.spec)))
                ]
            if updates:
                self._version += 1
                return _PC.UpdateSet(version=str(self._version), filterSet=updates)
            if not self.registry.wait(generation, deadline - time.monotonic()):
                return None

    def WaitForUpdates(self, context: Any, version: str) -> Any:
        """The older form."""
        return self.WaitForUpdatesEx(context, version, None)

    def CheckForUpdates(self, context: Any, version: str) -> Any:
        """Without waiting."""
        return self.WaitForUpdatesEx(context, version, _PC.WaitOptions(maxWaitSeconds=0))

    def CancelWaitForUpdates(self, context: Any) -> None:
        """Wakes who waits."""
        self.registry.changed()

    def CreatePropertyCollector(self, context: Any) -> Any:
        """One of its own."""
        return PropertyCollector(self.registry, f"collector-{self.registry.number()}").reference

    def DestroyPropertyCollector(self, context: Any) -> None:
        """Gone."""
        self.remove()

    # --- inside ---

    def _retrieve(self, specs: Any) -> list[Any]:
        return [
            _PC.ObjectContent(
                obj=item.reference,
                propSet=[vmodl.DynamicProperty(name=name, val=value) for name, value in values.items()],
            )
            for spec in specs
            for item, values in _content(self.registry, spec).values()
        ]

    def _page(self, found: list[Any], size: int) -> Any:
        result = _PC.RetrieveResult(objects=found[:size])
        if found[size:]:
            result.token = str(self.registry.number())
            self._rest[result.token] = (found[size:], size)
        return result


class _Filter(ManagedObject):
    """What one client waits for, and what it has seen of it."""

    def __init__(self, registry: Registry, spec: Any, filters: dict[str, _Filter]) -> None:
        super().__init__(registry, _PC.Filter, f"filter-{registry.number()}")
        self.spec = spec
        self.seen: dict[str, dict[str, str]] = {}
        self._filters = filters
        filters[self.moid] = self

    def DestroyPropertyFilter(self, context: Any) -> None:
        """Gone."""
        self._filters.pop(self.moid, None)
        self.remove()

    def changes(self, content: _Content) -> list[Any]:
        """Updates since the last time, which are seen from now on."""
        updates, current = [], {}
        for moid, (item, values) in content.items():
            text = {name: serialize(value, "v", object) for name, value in values.items()}
            current[moid] = text
            before = self.seen.get(moid)
            changed = [
                _PC.Change(name=name, op="assign", val=values[name])
                for name in text
                if before is None or before.get(name) != text[name]
            ]
            changed += [_PC.Change(name=name, op="assign") for name in (before or {}) if name not in text]
            if before is None or changed:
                kind = "enter" if before is None else "modify"
                updates.append(_PC.ObjectUpdate(kind=kind, obj=item.reference, changeSet=changed))
        updates += [
            _PC.ObjectUpdate(kind="leave", obj=vim.ManagedEntity(moid))
            for moid in set(self.seen) - set(current)
        ]
        self.seen = current
        return updates


def _content(registry: Registry, spec: Any) -> _Content:
    """What a filter spec selects: by object ID, the object and its values."""
    result: _Content = {}
    for moid, item in _objects(registry, spec).items():
        values: dict[str, Any] = {}
        made: dict[str, Any] = {}
        selected = False
        for properties in spec.propSet:
            if not issubclass(item.kind, properties.type):
                continue
            selected = True
            for path in list(item.properties) if properties.all else properties.pathSet:
                value = item.get(path, made)
                if value is not None:
                    values[path] = value
        if selected:
            result[moid] = (item, values)
    return result


def _objects(registry: Registry, spec: Any) -> dict[str, ManagedObject]:
    found: dict[str, ManagedObject] = {}
    for selected in spec.objectSet:
        try:
            root = registry.find(selected.obj)
        except vmodl.fault.ManagedObjectNotFound:
            if spec.reportMissingObjectsInResults:
                continue
            raise
        if not selected.skip:
            found[root.moid] = root
        _walk(registry, root, selected.selectSet, _named(selected.selectSet), set(), found)
    return found


def _named(selections: Any) -> dict[str, Any]:
    """Traversal specs by name, for those that refer to one another."""
    names: dict[str, Any] = {}
    for each in selections:
        if isinstance(each, _PC.TraversalSpec):
            if each.name:
                names.setdefault(each.name, each)
            names.update({name: spec for name, spec in _named(each.selectSet).items() if name not in names})
    return names


def _walk(
    registry: Registry,
    item: ManagedObject,
    selections: Any,
    names: dict[str, Any],
    visited: set[tuple[int, str]],
    found: dict[str, ManagedObject],
) -> None:
    for each in selections:
        spec = each if isinstance(each, _PC.TraversalSpec) else names.get(each.name)
        if spec is None or not issubclass(item.kind, spec.type) or (id(spec), item.moid) in visited:
            continue
        visited.add((id(spec), item.moid))
        value = item.get(spec.path)
        for reference in value if isinstance(value, list) else [value] if value else []:
            child = registry.find(reference)
            if not spec.skip:
                found[child.moid] = child
            _walk(registry, child, spec.selectSet, names, visited, found)
