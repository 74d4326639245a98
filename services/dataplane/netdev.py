"""What the kernel says of devices' XDP, by generic netlink: the family `netdev`, of Linux 6.3.

A driver tells which of XDP's actions it carries out (NETDEV_XDP_ACT_*, linux/netdev.h). What
matters here is whether a device *takes* frames that XDP redirects to it. That changes while it
runs: a veth takes them while its other end has GRO or an XDP program, many cards while they have a
program of their own. So one socket is subscribed to the family's changes and stands in the poll
loop, and another one asks, as in `netlink`, whose encoding this is.

Older kernels have no such family. Then nothing is known, and nothing is guessed: `serve` is None.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping

from services.dataplane.netlink import (
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    U32,
    attribute,
    attributes,
    drain,
    message,
    split,
)

FAMILY, GROUP = b"netdev\0", b"mgmt\0"
NETLINK_GENERIC, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 16, 270, 1
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
CTRL_ATTR_MCAST_GRP_NAME, CTRL_ATTR_MCAST_GRP_ID = 1, 2
DEV_GET, DEV_ADDED, DEV_DELETED, DEV_CHANGED = 1, 2, 3, 4
DEV_IFINDEX, DEV_XDP_FEATURES = 1, 3

COMMAND = struct.Struct("=BBxx")
U16 = struct.Struct("=H")
U64 = struct.Struct("=Q")
RECEIVE_BYTES = 1 << 16
ANSWER_TIMEOUT_S = 1.0
DUMP_TRIES = 5


class DeviceMonitor:
    """The XDP features of all devices, kept current. Put it into the poller, by its `fileno`."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._requests = socket.socket(socket.AF_NETLINK, kind, NETLINK_GENERIC)
        self._requests.settimeout(ANSWER_TIMEOUT_S)
        self._requests.bind((0, 0))
        self._notifications = socket.socket(
            socket.AF_NETLINK, kind | socket.SOCK_NONBLOCK, NETLINK_GENERIC
        )
        self._notifications.bind((0, 0))
        self._sequence = 0
        self._features: dict[int, int] = {}
        self._family, group = self._find_family()
        if group is not None:
            self._notifications.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._read_all()

    def fileno(self) -> int:
        return self._notifications.fileno()

    def close(self) -> None:
        self._requests.close()
        self._notifications.close()

    def serve(self) -> Mapping[int, int] | None:
        """Take in what has changed. By ifindex, NETDEV_XDP_ACT_*; None: this kernel cannot say."""
        if self._family is None:
            return None
        if not drain(self._notifications, self._take):
            self._read_all()
        return dict(self._features)

    def _find_family(self) -> tuple[int | None, int | None]:
        """The numbers by which this kernel knows the family and its group; None: it has none."""
        body = attribute(CTRL_ATTR_FAMILY_NAME, FAMILY)
        for answer in self._ask(GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, body):
            found = attributes(answer[COMMAND.size :])
            for entry in attributes(found.get(CTRL_ATTR_MCAST_GROUPS, b"")).values():
                group = attributes(entry)
                if group[CTRL_ATTR_MCAST_GRP_NAME] == GROUP:
                    family = U16.unpack(found[CTRL_ATTR_FAMILY_ID])[0]
                    return family, U32.unpack(group[CTRL_ATTR_MCAST_GRP_ID])[0]
        return None, None

    def _read_all(self) -> None:
        assert self._family is not None
        for _ in range(DUMP_TRIES):
            self._features.clear()
            try:
                for answer in self._ask(self._family, NLM_F_DUMP, DEV_GET, b""):
                    self._fold(answer)
            except InterruptedError:
                continue
            return

    def _take(self, kind: int, body: bytes) -> None:
        if kind == self._family:
            self._fold(body)

    def _fold(self, body: bytes) -> None:
        command, _ = COMMAND.unpack_from(body)
        found = attributes(body[COMMAND.size :])
        if DEV_IFINDEX not in found:
            return
        ifindex = U32.unpack(found[DEV_IFINDEX])[0]
        if command == DEV_DELETED:
            self._features.pop(ifindex, None)
        elif command in (DEV_GET, DEV_ADDED, DEV_CHANGED) and DEV_XDP_FEATURES in found:
            self._features[ifindex] = U64.unpack(found[DEV_XDP_FEATURES])[0]

    def _ask(self, family: int, flags: int, command: int, body: bytes) -> Iterator[bytes]:
        """The answers to one request, none if it is refused.

        Raises `InterruptedError` if what is listed changed meanwhile.
        """
        self._sequence += 1
        request = COMMAND.pack(command, 1) + body
        self._requests.send(message(family, NLM_F_REQUEST | flags, self._sequence, request))
        while True:
            for kind, said, sequence, answer in split(self._requests.recv(RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue  # the rest of a list that was given up
                if said & NLM_F_DUMP_INTR:
                    raise InterruptedError
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    return
                yield answer
            if not flags & NLM_F_DUMP:
                return
