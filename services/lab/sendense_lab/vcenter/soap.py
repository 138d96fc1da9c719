# SPDX-License-Identifier: Apache-2.0
"""vSphere's SOAP from the server's side, by pyvmomi's own (de)serializer: types cannot drift apart."""

from __future__ import annotations

import datetime
import io
from typing import Any
from xml.parsers.expat import ParserCreate
from xml.sax.saxutils import escape

from pyVmomi import VmomiSupport, vim, vmodl
from pyVmomi.SoapAdapter import (
    NS_SEP,
    SOAP_END,
    SOAP_NSMAP,
    SOAP_START,
    XML_HEADER,
    SoapDeserializer,
    SoapSerializer,
)

VERSION = "vim.version.v8_0_3_0"
VERSION_ID = "8.0.3.0"
RELEASES = {"7.0": "7.0.3.0", "8.0": VERSION_ID}
"""Of vCenters that can be simulated: the version of their API."""

_NAMESPACES = {**SOAP_NSMAP, "urn:vim25": ""}
_OPTIONAL = VmomiSupport.F_OPTIONAL
_THIS = VmomiSupport.Object(name="_this", type=VmomiSupport.ManagedObject, version=VERSION, flags=0)
# Reading one property is a method that pyvmomi knows no parameters of.
_FETCH = (VmomiSupport.Object(name="prop", type=str, version=VERSION, flags=0),)
_request_types: dict[str, Any] = {}


def parameters(method: str) -> Any:
    """Declared parameters of a method."""
    return _FETCH if method == "Fetch" else VmomiSupport.GuessWsdlMethod(method).info.params


def result_type(method: str) -> Any:
    """Declared type of a method's result."""
    return object if method == "Fetch" else VmomiSupport.GuessWsdlMethod(method).info.result


def _request_type(method: str) -> Any:
    """A data object whose properties are the method's parameters: pyvmomi can then parse a request."""
    if method not in _request_types:
        properties = [_THIS] + [
            VmomiSupport.Object(name=each.name, type=each.type, version=VERSION, flags=_OPTIONAL)
            for each in parameters(method)
        ]
        _request_types[method] = type(
            f"Request{method}",
            (VmomiSupport.DataObject,),
            {
                "_wsdlName": method,
                "_version": VERSION,
                "_propList": properties,
                "_propInfo": {each.name: each for each in properties},
            },
        )
    return _request_types[method]


class _Envelope:
    """Finds the method in the body and leaves the rest to pyvmomi."""

    def __init__(self, parser: Any) -> None:
        self.method = ""
        self.deserializer = SoapDeserializer(None, VERSION)
        self._parser = parser
        self._namespaces: dict[str, list[str]] = {}
        self._in_body = False
        parser.StartElementHandler = self._start
        parser.EndElementHandler = lambda tag: None
        parser.CharacterDataHandler = lambda data: None
        parser.StartNamespaceDeclHandler = lambda prefix, uri: self._namespaces.setdefault(prefix, []).append(
            uri
        )
        parser.EndNamespaceDeclHandler = lambda prefix: self._namespaces[prefix].pop()

    def _start(self, tag: str, attributes: Any) -> None:
        local = tag.rsplit(NS_SEP, 1)[-1]
        if self._in_body and not self.method:
            self.method = local
            try:
                request_type = _request_type(local)
            except KeyError:
                raise vmodl.fault.InvalidRequest(msg=f"unknown method {local}") from None
            self.deserializer.Deserialize(self._parser, request_type, False, self._namespaces)
            self.deserializer.StartElementHandler(tag, attributes)
        elif local == "Body":
            self._in_body = True


def parse_request(body: bytes) -> tuple[str, Any, dict[str, Any]]:
    """(method, reference of the object, arguments by name) of a request."""
    parser = ParserCreate(namespace_separator=NS_SEP)
    parser.buffer_text = True
    envelope = _Envelope(parser)
    parser.Parse(body, True)
    request = envelope.deserializer.GetResult()
    arguments = {each.name: getattr(request, each.name) for each in parameters(envelope.method)}
    return envelope.method, request._this, arguments  # noqa: SLF001 - pyvmomi's name for it


def typed(value: Any, wanted: Any) -> Any:
    """A Python value as exactly the type that is declared: on the wire, anyType must say what it is."""
    if value is None or wanted is object:
        return value
    if issubclass(wanted, list):
        return value if isinstance(value, wanted) else wanted(value)
    if issubclass(wanted, VmomiSupport.Enum) and not isinstance(value, wanted):
        return getattr(wanted, value)
    if issubclass(wanted, (int, float)) and type(value) is not wanted and wanted is not bool:
        return wanted(value)
    return value


def serialize(value: Any, name: str, declared: Any) -> str:
    """One element."""
    writer = io.StringIO()
    serializer = SoapSerializer(writer, VERSION, _NAMESPACES)
    serializer.outermostAttrs = ""
    serializer.Serialize(
        value, VmomiSupport.Object(name=name, type=declared, version=VERSION, flags=_OPTIONAL)
    )
    # pyvmomi writes another name here than a real vCenter; other clients insist on the real one.
    return writer.getvalue().replace('xsi:type="ManagedObject"', 'xsi:type="ManagedObjectReference"')


def render(method: str, value: Any) -> bytes:
    """The answer of a method."""
    declared = result_type(method)
    body = ""
    if value is not None and declared not in (None, type(None)):
        body = serialize(typed(value, declared), "returnval", declared)
    return (
        f'{XML_HEADER}\n{SOAP_START}<{method}Response xmlns="urn:vim25">{body}</{method}Response>{SOAP_END}'
    ).encode()


def render_fault(fault: Any) -> bytes:
    """A fault as the answer of a method."""
    writer = io.StringIO()
    serializer = SoapSerializer(writer, VERSION, _NAMESPACES)
    serializer.outermostAttrs = ""
    message, fault.msg = fault.msg or "", None
    name = type(fault).__name__.split(".")[-1] + "Fault"
    serializer.SerializeFaultDetail(
        fault, VmomiSupport.Object(name=name, type=object, version=VERSION, flags=0)
    )
    fault.msg = message
    detail = writer.getvalue().replace("Fault ", 'Fault xmlns="urn:vim25" ', 1)
    return (
        f"{XML_HEADER}\n{SOAP_START}<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{escape(message)}</faultstring><detail>{detail}</detail></soapenv:Fault>{SOAP_END}"
    ).encode()


def now() -> datetime.datetime:
    """The clock, as vSphere tells it."""
    return datetime.datetime.now(datetime.UTC)


def make(cls: Any, **values: Any) -> Any:
    """A data object whose required properties all have something harmless in them, recursively."""
    made = cls()
    for prop in cls._GetPropertyList():
        if prop.name in values or prop.flags & _OPTIONAL or getattr(made, prop.name) not in (None, ""):
            continue
        if issubclass(prop.type, datetime.datetime):
            value: Any = now()
        elif issubclass(prop.type, VmomiSupport.Enum):
            value = prop.type.values[0]
        elif issubclass(prop.type, VmomiSupport.DataObject):
            value = make(prop.type)
        elif issubclass(prop.type, VmomiSupport.ManagedObject):
            value = prop.type("unset")
        else:
            continue
        object.__setattr__(made, prop.name, value)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def invalid_argument(name: str) -> Any:
    """The fault for a wrong parameter, in vSphere's words."""
    return vmodl.fault.InvalidArgument(
        invalidProperty=name, msg=f"A specified parameter was not correct: {name}"
    )


def fault(type_name: str, message: str) -> Any:
    """A fault by its name, as "vim.fault.FileFault"."""
    return make(VmomiSupport.GetVmodlType(type_name), msg=message)


__all__ = [
    "RELEASES",
    "VERSION_ID",
    "fault",
    "invalid_argument",
    "make",
    "now",
    "parse_request",
    "render",
    "render_fault",
]
__all__ += ["serialize", "typed", "vim", "vmodl"]
