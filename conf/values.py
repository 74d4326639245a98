"""The kinds of value a configuration file holds, each read strictly and refused in plain words.

pydantic would take `"7070"` for a number and answer `Input should be a valid integer`; an operator
is better served by what is wrong and what is expected. So each kind is an `Annotated` type whose
validator refuses by one sentence of that form, and nothing is ever converted silently but a
duration, which becomes whole milliseconds.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, PlainValidator
from pydantic_core import PydanticCustomError

_DURATION = re.compile(r"(\d{1,12})(ms|s|m|h)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62})")
_INTERFACE = re.compile(r"[^\s/:\x00-\x1f\x7f]{1,15}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PERCENTAGE = re.compile(r"(\d{1,3})%")
_PORT_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})")
_EVENTS = re.compile(r"tcp://([^:/\s]+):(\d{1,5})")


def refusal(message: str) -> PydanticCustomError:
    """What a validator raises; `message` says what is wrong and what is expected."""
    return PydanticCustomError("refused", "{message}", {"message": message})


def shown(value: Any) -> str:
    """A value as it may stand in the file, short enough for one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str | bool):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else f'{text[:56]}..."'
    return str(value)


def duration_text(duration_ms: int) -> str:
    """The shortest way to write a duration: 5000 is `5s`."""
    if not duration_ms:
        return "0s"
    for unit in ("h", "m", "s"):
        if duration_ms % _UNIT_MS[unit] == 0:
            return f"{duration_ms // _UNIT_MS[unit]}{unit}"
    return f"{duration_ms}ms"


# --------------------------------------------------------------------------- numbers


def _whole(least: int, most: int, noun: str = "") -> BeforeValidator:
    expected = f"expected a whole number from {least} to {most}"

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise refusal(f"{shown(value)} is no whole number, {expected}")
        if not least <= value <= most:
            wrong = f"is no {noun}" if noun else "is out of range"
            raise refusal(f"{value} {wrong}, {expected}")
        return value

    return BeforeValidator(check)


def whole(least: int, most: int) -> BeforeValidator:
    """A whole number between bounds, both included."""
    return _whole(least, most)


Port = Annotated[int, _whole(1, 65535, "port")]


class Ports(NamedTuple):
    """One port, or a range of them, both ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return str(self.first) if self.size == 1 else f"{self.first}-{self.last}"


def _ports(value: Any) -> Ports:
    expected = 'expected a whole number from 1 to 65535, or a range such as "9000-9099"'
    if isinstance(value, Ports):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 65535:
            raise refusal(f"{value} is no port, {expected}")
        return Ports(value, value)
    found = _PORT_RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise refusal(f"{shown(value)} is no port, {expected}")
    first, last = int(found[1]), int(found[2])
    if not 1 <= first <= last <= 65535:
        raise refusal(f"{shown(value)} is no range of ports, {expected}")
    return Ports(first, last)


PortOrRange = Annotated[Ports, PlainValidator(_ports)]


def _fails(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
        raise refusal(f"{shown(value)} is no number of fails, expected 1 or more, or -1 for never")
    return value


def _percentage(value: Any) -> int:
    found = _PERCENTAGE.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[1]) > 100:
        raise refusal(f'{shown(value)} is no percentage, expected one such as "50%"')
    return int(found[1])


Percentage = Annotated[int, BeforeValidator(_percentage)]
"""Written "50%", kept as 50."""


FailsBeforeBan = Annotated[int, BeforeValidator(_fails)]


def duration(least_ms: int, most_ms: int) -> BeforeValidator:
    """A duration such as `"250ms"` between bounds, read as whole milliseconds."""
    example = 'expected a whole number and a unit, such as "250ms", "5s", "5m" or "1h"'
    bounds = f"expected from {duration_text(least_ms)} to {duration_text(most_ms)}"

    def check(value: Any) -> int:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise refusal(f"{value} has no unit, {example}")
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise refusal(f"{shown(value)} is no duration, {example}")
        duration_ms = int(found[1]) * _UNIT_MS[found[2]]
        if duration_ms < least_ms:
            raise refusal(f"{shown(value)} is too short, {bounds}")
        if duration_ms > most_ms:
            raise refusal(f"{shown(value)} is too long, {bounds}")
        return duration_ms

    return BeforeValidator(check)


# --------------------------------------------------------------------------- words


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise refusal(f"{shown(value)} is neither, expected true or false")
    return value


Boolean = Annotated[bool, BeforeValidator(_boolean)]


def one_of(*words: str) -> BeforeValidator:
    """One of a few words, written exactly so."""
    quoted = [f'"{word}"' for word in words]
    expected = f"{', '.join(quoted[:-1])} or {quoted[-1]}"

    def check(value: Any) -> str:
        if value not in words:
            raise refusal(f"{shown(value)} is unknown, expected {expected}")
        return str(value)

    return BeforeValidator(check)


Mode = Annotated[Literal["l2", "l3", "l4"], one_of("l2", "l3", "l4")]
Protocol = Annotated[Literal["tcp", "udp"], one_of("tcp", "udp")]
Affinity = Annotated[Literal["flow", "client"], one_of("flow", "client")]
Encapsulation = Annotated[Literal["ipip", "gue"], one_of("ipip", "gue")]
ReplyHook = Annotated[Literal["tc", "xdp"], one_of("tc", "xdp")]
UnwrapHook = Annotated[Literal["tc", "xdp"], one_of("tc", "xdp")]
NodeDown = Annotated[Literal["reset", "keep"], one_of("reset", "keep")]
Probe = Annotated[Literal["tcp", "none"], one_of("tcp", "none")]
Announce = Annotated[Literal["arp", "exec"], one_of("arp", "exec")]
OnQuorumLoss = Annotated[Literal["lapse", "hold"], one_of("lapse", "hold")]
NoFlow = Annotated[Literal["reset", "drop"], one_of("reset", "drop")]
XdpFlavour = Annotated[Literal["native", "generic"], one_of("native", "generic")]
LogFormat = Annotated[Literal["logfmt", "json"], one_of("logfmt", "json")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], one_of("debug", "info", "warning", "error")
]
CheckType = Annotated[Literal["tcp", "http", "udp"], one_of("tcp", "http", "udp")]


def _text(is_right: Callable[[str], Any], noun: str, expected: str) -> BeforeValidator:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not is_right(value):
            raise refusal(f"{shown(value)} is no {noun}, expected {expected}")
        return value

    return BeforeValidator(check)


def is_name(value: str) -> bool:
    return _NAME.fullmatch(value) is not None


Name = Annotated[
    str,
    _text(
        is_name,
        "name",
        'letters, digits, ".", "_" or "-", beginning with a letter or digit, at most 63',
    ),
]

Interface = Annotated[
    str,
    _text(
        lambda value: value not in (".", "..") and _INTERFACE.fullmatch(value),
        "interface name",
        'at most 15 characters without spaces, "/" and ":", such as "eth0"',
    ),
]

HttpPath = Annotated[
    str,
    _text(
        re.compile(r"/[!-~]*").fullmatch,
        "path",
        'one that begins with "/" and has no spaces, such as "/healthz"',
    ),
]


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise refusal(f'{shown(value)} is no absolute path, expected one that begins with "/"')
    return Path(value)


AbsolutePath = Annotated[Path, BeforeValidator(_path)]

# --------------------------------------------------------------------------- addresses


def _ipv4(value: Any) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _is_host_address(value: str) -> bool:
    address = _ipv4(value)
    return address is not None and not (
        address.is_multicast or address.is_unspecified or address.is_reserved
    )


def _is_host_name(value: str) -> bool:
    labels = value.split(".")
    return (
        len(value) <= 253
        and all(_HOST_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()  # would be an address, or a mistyped one
    )


HostAddress = Annotated[
    str, _text(_is_host_address, "IPv4 address of a machine", 'one such as "192.168.1.2"')
]
"""An IPv4 address that one machine may have; loopback is one."""

VirtualAddress = Annotated[
    str,
    _text(
        lambda value: _is_host_address(value) and not value.startswith("127."),
        "IPv4 address for clients",
        'one such as "192.168.1.100"',
    ),
]

MOST_SNAT_ADDRESSES = 8
"""The most SNAT addresses that one service can use: its record in the kernel has room for these."""


def _snat_addresses(value: Any) -> Any:
    if isinstance(value, list) and not 1 <= len(value) <= MOST_SNAT_ADDRESSES:
        wrong = f"{len(value)} addresses" if value else "an empty list"
        raise refusal(f"{wrong}, expected from 1 to {MOST_SNAT_ADDRESSES} addresses, or no list")
    return value


SnatAddresses = Annotated[tuple[VirtualAddress, ...], BeforeValidator(_snat_addresses)]

OuterPrefix = Annotated[
    str,
    _text(
        lambda value: value.endswith(".0.0/16") and _is_host_address(value[:-3]),
        "prefix of 16 bits",
        'one that is used for nothing else, such as "100.64.0.0/16"',
    ),
]

HostName = Annotated[
    str, _text(_is_host_name, "host name", 'one such as "lb-1.local", without a port')
]


def _events(value: Any) -> str:
    found = _EVENTS.fullmatch(value) if isinstance(value, str) else None
    host_is_right = found and (
        found[1] == "*" or _ipv4(found[1]) is not None or _is_interface_name(found[1])
    )
    if not found or not host_is_right or not 1 <= int(found[2]) <= 65535:
        expected = 'expected "tcp://ADDRESS:PORT", such as "tcp://192.168.1.2:5556"'
        raise refusal(f"{shown(value)} is no endpoint, {expected}")
    return str(value)


def _is_interface_name(value: str) -> bool:
    """Not digits and dots alone: that is a mistyped address."""
    return bool(_INTERFACE.fullmatch(value)) and not re.fullmatch(r"[\d.]+", value)


EventsEndpoint = Annotated[str, BeforeValidator(_events)]
