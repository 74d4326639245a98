"""The maps as the dataplane reads and writes them: a plan's values here, C structs there.

Layouts come from bcc's description of the compiled source, never from a second definition here.
Addresses and ports stand in network order, as packets have them.

`adopt` reads what a process before this one left, so that the first plan changes only what is
really different. `carry_out` makes a plan's writes in their order, those of one kind that follow
each other in one system call; whoever dies between two leaves maps that work. A service that finds
no place in its table is left out by name, and is not taken for written: the next plan tries again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.syscall import read_entries, write_entries
from bus.words import Affinity, Encapsulation, Mode
from services.dataplane.front_table import PROTOCOLS, FrontTable, NoPlaceError
from services.dataplane.maps import (
    ENTRIES,
    LANES,
    AddressInfo,
    AddressRemoval,
    AddressWrite,
    EndpointRemoval,
    EndpointWrite,
    KernelState,
    Seat,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceRemoval,
    ServiceWrite,
    Slice,
    SlotsWrite,
    Write,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import Plan
from services.dataplane.words import (
    ServiceKey,
    address_text,
    address_word,
    floating_text,
    is_ipv6,
    mac_bytes,
    mac_text,
    port_number,
    port_word,
)

MAX_SERVICES = 2_048
"""Ids of services: for a thousand, and for those that have gone and still have flows."""
SEAT_RESOLVED, SEAT_UP, SEAT_DEAD, SEAT_RESET, SEAT_BY_TC, SEAT_OWN = 1, 2, 4, 8, 16, 32
SERVICE_AFFINITY_CLIENT, SERVICE_NO_SNAT, SERVICE_GUE = 1, 2, 4
SERVICE_NO_RESET, SERVICE_HAS_FLOWS, SERVICE_RETIRED, SERVICE_KEEPS_PORT = 8, 16, 32, 64
SERVICE_OF_THIS_NODE = 128
ASKED_IN_PUBLIC = 1
ADDRESS_OF_SERVICE, ADDRESS_FLOATING, ADDRESS_SNAT = 1, 2, 4
MODES = {Mode.L2: 2, Mode.L3: 3, Mode.L4: 4}
_PROTOCOL_OF = {number: protocol for protocol, number in PROTOCOLS.items()}
_MODE_OF = {number: mode for mode, number in MODES.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for this LB as a whole: `struct settings`, field by field."""

    hash_seed: int
    flow_seed: int
    """Of the flow table's hash; 0: nobody has drawn it yet."""
    public_ifindex: int
    """0: nobody has set the programs up yet."""
    private_ifindex: int
    public_mac: bytes
    public_mtu: int
    private_mac: bytes
    public_address: int
    """As `address_word` has it: as whom this LB itself speaks to clients."""
    private_address: int
    """Likewise, to nodes."""
    outer_prefix: int
    """As `address_word` has it; 0: none."""
    chained: int
    """1: flows may still stand in the table before this one."""
    new_flows_per_second: int
    new_flows_per_second_per_source: int
    answers_per_second: int
    public_by_tc: int
    """1: this device takes no frames from XDP, so TC sends there."""
    private_by_tc: int
    notes: int
    """1: what becomes of flows is noted, for replication and the NAT log."""
    timeout: tuple[int, ...]
    """Ticks, by state; as many as the array has."""


@dataclass(frozen=True, slots=True)
class RivalClaim:
    """Another MAC address that said so many times, the last time then, that it has an address."""

    mac: str
    seen: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class Floating:
    """A floating address in the maps: until when (ns of the monotonic clock) this LB claims it."""

    until_ns: int
    side: str
    """public or private: where it is asked for."""
    rival: RivalClaim | None = None


class Kernel:
    """The maps of one loaded object."""

    def __init__(self, bpf: Any) -> None:
        self._settings = bpf[b"settings"]
        self._services = bpf[b"services"]
        self._seats = bpf[b"seats"]
        self._counters = bpf[b"seat_counters"]
        self._cursors = bpf[b"port_cursors"]
        self._addresses = bpf[b"addresses"]
        self._endpoints = bpf[b"endpoints"]
        self._claims, self._rivals = bpf[b"claims"], bpf[b"rivals"]
        self._ring_fd = bpf[b"ring"].map_fd
        self.max_seats: int = self._seats.info.max_entries
        self.max_rings: int = bpf[b"ring"].info.max_entries // ENTRIES
        self.max_endpoints: int = self._endpoints.info.max_entries
        self._fronts = FrontTable()

    # ------------------------------------------------------------------ settings

    def read_settings(self) -> Settings:
        leaf = self._settings[self._settings.Key(0)]
        values = {field.name: getattr(leaf, field.name) for field in fields(Settings)}
        macs = {name: bytes(values[name]) for name in ("public_mac", "private_mac")}
        return Settings(**values | macs | {"timeout": tuple(leaf.timeout)})

    def write_settings(self, settings: Settings) -> None:
        _write(self._settings, self._settings.Key(0), asdict(settings))

    # ------------------------------------------------------------------ floating addresses

    def floating(self) -> dict[str, Floating]:
        """Every floating address, as the quorum process has written it."""
        rivals = {
            floating_text(bytes(key)): RivalClaim(
                mac_text(leaf["mac"]), int(leaf["seen"]), int(leaf["last"])
            )
            for key, leaf in _pairs(self._rivals)
        }
        found = {}
        for key, leaf in _pairs(self._claims):
            text = floating_text(bytes(key))
            side = "public" if int(leaf["sides"]) & ASKED_IN_PUBLIC else "private"
            found[text] = Floating(int(leaf["until"]), side, rivals.get(text))
        return found

    # ------------------------------------------------------------------ adopting

    def adopt(self) -> KernelState:
        """What the maps hold, in the plan's words."""
        services = dict(self._read_services())
        return KernelState(
            seats=dict(self._read_seats()),
            services=services,
            rings=self._read_rings({value.ring for value in services.values()}),
            addresses={address_text(key): _info(leaf) for key, leaf in _pairs(self._addresses)},
            endpoints={_key(key): int(leaf) for key, leaf in _pairs(self._endpoints)},
        )

    def _read_services(self) -> Iterator[tuple[ServiceKey, Service]]:
        self._fronts = FrontTable()
        for places, values in _records(self._services):
            for taken in np.flatnonzero(values["port"]):
                key, place = _key(values[taken]), int(places[taken])
                if key in self._fronts:
                    # Whoever was here before died while it was on its way from one to the other.
                    self._services[self._services.Key(place)] = self._services.Leaf()
                    continue
                self._fronts.put(key, place)
                yield key, _service(values[taken])

    def _read_seats(self) -> Iterator[tuple[int, Seat]]:
        for keys, values in _records(self._seats):
            for place in np.flatnonzero(values["identity"]):
                yield int(keys[place]), _seat(values[place])

    def _read_rings(self, numbers: set[int]) -> dict[int, NDArray[np.uint16]]:
        if not numbers:
            return {}
        # The lowest are given first, so this is the beginning of a map of a million entries.
        count = (max(numbers) + 1) * ENTRIES
        raw = b"".join(values for _, values in read_entries(self._ring_fd, count))
        rings = np.frombuffer(raw, np.uint16).reshape(-1, ENTRIES, LANES)
        return {number: rings[number].copy() for number in numbers}

    # ------------------------------------------------------------------ applying

    def carry_out(self, plan: Plan) -> tuple[KernelState, tuple[str, ...]]:
        """Make a plan's writes. What the maps hold then, and who was left out, for which reason."""
        left_out: dict[ServiceKey, str] = {}
        for kind, writes in groupby(plan.writes, key=type):
            if kind is SeatWrite:
                self._write_seats(list(writes))  # type: ignore[arg-type]
            elif kind is ServiceWrite:
                left_out |= self._write_services(list(writes))  # type: ignore[arg-type]
            elif kind is EndpointWrite:
                self._write_endpoints(list(writes))  # type: ignore[arg-type]
            else:
                for write in writes:
                    self.apply(write)
        if not left_out:
            return plan.after, ()
        there = {key: value for key, value in plan.after.services.items() if key not in left_out}
        return replace(plan.after, services=there), tuple(left_out.values())

    def apply(self, write: Write) -> None:
        """Make one write of a plan; raises `NoPlaceError`."""
        match write:
            case SeatWrite():
                self._write_seats([write])
            case SeatRemoval(seat):
                self._seats[self._seats.Key(seat)] = self._seats.Leaf()
            case SlotsWrite(_, indices, values):
                write_entries(self._ring_fd, indices.tobytes(), values.tobytes())
            case ServiceWrite():
                for reason in self._write_services([write]).values():
                    raise NoPlaceError(reason)
            case ServiceRemoval(key):
                place = self._fronts.remove(key)
                if place is not None:
                    self._services[self._services.Key(place)] = self._services.Leaf()
            case AddressWrite(address, info):
                key_word = self._addresses.Key(address_word(address))
                _write(self._addresses, key_word, _info_fields(info))
            case AddressRemoval(address):
                self._addresses.pop(self._addresses.Key(address_word(address)), None)
            case EndpointWrite():
                self._write_endpoints([write])
            case EndpointRemoval(key):
                self._endpoints.pop(self._endpoints.Key(**_key_fields(key)), None)

    def _write_seats(self, writes: Sequence[SeatWrite]) -> None:
        """Of a number that changes hands, what was counted belongs to somebody else."""
        _clear(self._counters, [write.seat for write in writes if write.fresh])
        _clear(self._cursors, [write.value.cursor for write in writes if write.fresh_cursor])
        values = np.zeros(len(writes), np.dtype(self._seats.Leaf))
        for name, column in _columns([_seat_fields(write.value) for write in writes]):
            values[name] = column
        keys = np.array([write.seat for write in writes], np.uint32)
        write_entries(self._seats.map_fd, keys.tobytes(), values.tobytes())

    def _write_endpoints(self, writes: Sequence[EndpointWrite]) -> None:
        keys = np.zeros(len(writes), np.dtype(self._endpoints.Key))
        for name, column in _columns([_key_fields(write.key) for write in writes]):
            keys[name] = column
        seats = np.array([write.seat for write in writes], np.uint32)
        write_entries(self._endpoints.map_fd, keys.tobytes(), seats.tobytes())

    def _write_services(self, writes: Sequence[ServiceWrite]) -> dict[ServiceKey, str]:
        """Who found no place, and why."""
        left_out: dict[ServiceKey, str] = {}
        fresh: list[ServiceWrite] = []
        known: list[ServiceWrite] = []
        for write in writes:
            if write.key in self._fronts:
                known.append(write)
                continue
            try:
                self._make_room(write.key)
                fresh.append(write)
            except NoPlaceError as reason:
                left_out[write.key] = str(reason)
        # The key comes last: whoever finds it finds all that belongs to it.
        self._write_fronts(fresh, with_keys=False)
        self._write_fronts(fresh + known, with_keys=True)
        return left_out

    def _write_fronts(self, writes: Sequence[ServiceWrite], *, with_keys: bool) -> None:
        if not writes:
            return
        kind = np.dtype(self._services.Leaf)
        records: dict[Service, Any] = {}
        values = np.zeros(len(writes), kind)
        for row, write in enumerate(writes):
            record = records.get(write.value)
            if record is None:
                leaf = self._services.Leaf()
                _fill(leaf, _service_fields(write.value))
                record = records[write.value] = np.frombuffer(bytes(leaf), kind)[0]
            values[row] = record
        if with_keys:
            for name, column in _columns([_key_fields(write.key) for write in writes]):
                values[name] = column
        keys = np.array([self._fronts.place(write.key) for write in writes], np.uint32)
        write_entries(self._services.map_fd, keys.tobytes(), values.tobytes())

    def _make_room(self, front: ServiceKey) -> None:
        """Gives a front its place; what stands in the way moves on, from the end of the way."""
        way = self._fronts.way_for(front)
        table = self._services
        for place, following in zip(way[-2::-1], way[:0:-1], strict=True):
            table[table.Key(following)] = table[table.Key(place)]
            self._fronts.move(place, following)
        if len(way) > 1:
            table[table.Key(way[0])] = table.Leaf()
        self._fronts.put(front, way[0])


def _clear(table: Any, entries: Sequence[int]) -> None:
    """Zeros for these entries of an array."""
    if entries:
        keys = np.array(entries, np.uint32)
        size = len(bytes(table.Leaf()))
        write_entries(table.map_fd, keys.tobytes(), bytes(size * len(entries)))


def _columns(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Field by field; one that a row does not name is zero there."""
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        blank = next(row[name] for row in rows if name in row)
        if isinstance(blank, bytes):
            zeros = bytes(len(blank))
            raw = b"".join(row.get(name, zeros) for row in rows)
            yield name, np.frombuffer(raw, np.uint8).reshape(len(rows), -1)
        else:
            yield name, np.array([row.get(name, 0) for row in rows], np.uint64)


def _write(table: Any, key: Any, values: dict[str, Any]) -> None:
    """Write a struct by field names; what is not named, padding included, is zero."""
    leaf = table.Leaf()
    _fill(leaf, values)
    table[key] = leaf


def _fill(leaf: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, bytes | tuple):
            getattr(leaf, name)[: len(value)] = value
        else:
            setattr(leaf, name, value)


def _records(table: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Keys and values by batches, as numpy records with the C fields."""
    key_type, leaf_type = np.dtype(table.Key), np.dtype(table.Leaf)
    for keys, values in read_entries(table.map_fd):
        yield np.frombuffer(keys, key_type), np.frombuffer(values, leaf_type)


def _pairs(table: Any) -> Iterator[tuple[Any, Any]]:
    for keys, values in _records(table):
        yield from zip(keys, values, strict=True)


# --------------------------------------------------------------------------- from the maps


def _key(value: Any) -> ServiceKey:
    """What a `struct service_key` says, or a value that begins with one."""
    protocol = _PROTOCOL_OF[int(value["protocol"])]
    return ServiceKey(address_text(value["address"]), port_number(value["port"]), protocol)


def _slice(value: Any) -> Slice:
    names = ("snat_first_port", "snat_ports", "low_first_port", "low_ports")
    return Slice(*(int(value[name]) for name in names))


def _info(value: Any) -> AddressInfo:
    flags = int(value["flags"])
    return AddressInfo(
        of_service=bool(flags & ADDRESS_OF_SERVICE),
        floating=bool(flags & ADDRESS_FLOATING),
        snat_slice=_slice(value) if flags & ADDRESS_SNAT else None,
    )


def _service(value: Any) -> Service:
    flags = int(value["flags"])
    addresses = value["snat_address"][: int(value["snat_count"])]
    return Service(
        service_id=int(value["id"]),
        identity=int(value["identity"]),
        mode=_MODE_OF[int(value["mode"])],
        affinity=Affinity.CLIENT if flags & SERVICE_AFFINITY_CLIENT else Affinity.FLOW,
        encap=Encapsulation.GUE if flags & SERVICE_GUE else Encapsulation.IPIP,
        snat=not flags & SERVICE_NO_SNAT,
        no_reset=bool(flags & SERVICE_NO_RESET),
        has_flows=bool(flags & SERVICE_HAS_FLOWS),
        retired=bool(flags & SERVICE_RETIRED),
        keeps_port=bool(flags & SERVICE_KEEPS_PORT),
        of_this_node=bool(flags & SERVICE_OF_THIS_NODE),
        ring=int(value["ring"]),
        snat_addresses=tuple(address_text(word) for word in addresses),
        snat_slice=_slice(value),
    )


def _seat(value: Any) -> Seat:
    flags = int(value["flags"])
    ifindex = int(value["ifindex"])
    address, gateway = address_text(value["address"]), address_text(value["next_hop"])
    hop = None
    if ifindex:
        hop = NextHop(
            ifindex=ifindex,
            source_mac=mac_text(value["source_mac"]),
            destination_mac=mac_text(value["destination_mac"]) if flags & SEAT_RESOLVED else None,
            mtu=int(value["mtu"]),
            gateway=None if gateway == address else gateway,
            source=address_text(value["outer_source"]),
            by_tc=bool(flags & SEAT_BY_TC),
            own=bool(flags & SEAT_OWN),
        )
    return Seat(
        identity=int(value["identity"]),
        service_id=int(value["service"]),
        address=address,
        port=port_number(value["port"]),
        cursor=int(value["cursor"]),
        up=bool(flags & SEAT_UP),
        dead=bool(flags & SEAT_DEAD),
        reset=bool(flags & SEAT_RESET),
        next_hop=hop,
    )


# --------------------------------------------------------------------------- to the maps


def _seat_fields(seat: Seat) -> dict[str, Any]:
    hop = seat.next_hop
    is_resolved = hop is not None and hop.destination_mac is not None
    values: dict[str, Any] = {
        "address": address_word(seat.address),
        "port": port_word(seat.port),
        "service": seat.service_id,
        "identity": seat.identity,
        "cursor": seat.cursor,
        "flags": SEAT_RESOLVED * is_resolved
        | SEAT_UP * seat.up
        | SEAT_DEAD * seat.dead
        | SEAT_RESET * seat.reset
        | SEAT_BY_TC * (hop is not None and hop.by_tc)
        | SEAT_OWN * (hop is not None and hop.own),
    }
    if hop is None:
        return values
    return values | {
        "ifindex": hop.ifindex,
        "next_hop": 0 if is_ipv6(hop.gateway) else address_word(hop.gateway or seat.address),
        "destination_mac": mac_bytes(hop.destination_mac),
        "source_mac": mac_bytes(hop.source_mac),
        "mtu": hop.mtu,
        "outer_source": address_word(hop.source),
    }


def _key_fields(key: ServiceKey) -> dict[str, int]:
    return {
        "address": address_word(key.address),
        "port": port_word(key.port),
        "protocol": PROTOCOLS[key.protocol],
    }


def _slice_fields(own: Slice) -> dict[str, int]:
    return {
        "snat_first_port": own.first_port,
        "snat_ports": own.ports,
        "low_first_port": own.low_first_port,
        "low_ports": own.low_ports,
    }


def _info_fields(info: AddressInfo) -> dict[str, int]:
    flags = ADDRESS_OF_SERVICE * info.of_service | ADDRESS_FLOATING * info.floating
    if info.snat_slice is None:
        return {"flags": flags}
    return {"flags": flags | ADDRESS_SNAT} | _slice_fields(info.snat_slice)


def _service_fields(service: Service) -> dict[str, Any]:
    flags = SERVICE_NO_RESET * service.no_reset | SERVICE_HAS_FLOWS * service.has_flows
    flags |= SERVICE_RETIRED * service.retired | SERVICE_KEEPS_PORT * service.keeps_port
    flags |= SERVICE_OF_THIS_NODE * service.of_this_node
    if service.affinity is Affinity.CLIENT:
        flags |= SERVICE_AFFINITY_CLIENT
    if not service.snat:
        flags |= SERVICE_NO_SNAT
    if service.encap is Encapsulation.GUE:
        flags |= SERVICE_GUE
    return {
        "id": service.service_id,
        "mode": MODES[service.mode],
        "flags": flags,
        "identity": service.identity,
        "ring": service.ring,
        "snat_count": len(service.snat_addresses),
        "snat_address": tuple(map(address_word, service.snat_addresses)),
    } | _slice_fields(service.snat_slice)
