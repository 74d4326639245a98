"""Which ring each service goes by, and what stands in it: a part of the plan. Pure.

**Rings** are built from all nodes that the table lists for a service, and those that take no new
flows are masked (see `ring`): a node that dies, drains or comes back moves its own slots and no
other. Masked are those not UP or SUSPECT in the table, those that are DOWN or BANNED as seen from
here, and those that could not get a seat. A node in slow start has as many per cent of its own
slots as the table says, and lends the others.

**Sharing.** What a slot names does not depend on the service: services of the same nodes have the
same ring, and those of one `affinity_group` one that is seeded by the group's name, so a client's
connections to all of them meet one node. A thousand services are then one calculation, and when a
node dies, one write. In the kernel a slot holds a seat less the service's id, so services whose
seats lie alike (`seats` gives them so where it can) share the map's entries as well.

**Changes.** After every single write, each service's ring is complete and names its own seats. A
ring is changed in place only while all services that go by it do so afterwards; where one parts
from the others it gets a ring that nobody goes by, filled before the service is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from services.dataplane import ring
from services.dataplane.maps import (
    ENTRIES,
    LANES,
    NO_SEAT,
    BuiltRing,
    KernelState,
    LocalFacts,
    Place,
    RingKey,
    RingName,
    SeatRing,
    SlotsWrite,
)
from services.dataplane.seats import Seats


@dataclass(frozen=True, slots=True)
class Rings:
    """What is to stand in the map `ring`."""

    of_service: dict[int, int]
    """The ring of each service id that is served."""
    contents: dict[int, SeatRing]
    """By the ring's number."""
    built: dict[RingName, BuiltRing]
    refused: list[str]
    keys: dict[str, RingKey]
    """By service, what its ring follows from; with the contents below, for the next plan."""
    by_key: dict[RingKey, SeatRing]


@dataclass(slots=True)
class _Group:
    """Services that go by one ring of the map."""

    content: SeatRing
    ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def plan_rings(
    kernel: KernelState,
    placed: Mapping[str, list[Place]],
    ids: Mapping[str, int],
    seats: Seats,
    seed: int,
    facts: LocalFacts,
) -> Rings:
    built: dict[RingName, BuiltRing] = {}
    keys = {name: _key(kernel, name, number, placed, seats) for name, number in ids.items()}
    by_key = _groups(kernel, keys, placed, ids, seed, built)
    # Services that are retired take no new flow, so no ring of theirs is looked at.
    held = {v.service_id: v.ring for v in kernel.services.values() if not v.retired}
    holders: dict[int, set[int]] = {}
    for number, place in held.items():
        holders.setdefault(place, set()).add(number)
    of_service: dict[int, int] = {}
    contents: dict[int, SeatRing] = {}
    waiting: list[_Group] = []
    for group in sorted(by_key.values(), key=lambda group: -len(group.ids)):
        kept = _kept(kernel, group, held, holders, contents)
        if kept is None:
            waiting.append(group)
        else:
            contents[kept] = group.content
            of_service |= dict.fromkeys(group.ids, kept)
    free = iter([n for n in range(facts.max_rings) if n not in holders and n not in contents])
    refused: list[str] = []
    for group in waiting:
        found = next(free, None)
        if found is None:
            why = f"all {facts.max_rings} rings are in use"
            refused += [f"service {name}: {why}" for name in group.names]
        else:
            contents[found] = group.content
            of_service |= dict.fromkeys(group.ids, found)
    by_content = {key: group.content for key, group in by_key.items()}
    return Rings(of_service, contents, built, refused, keys, by_content)


def _members(places: Iterable[Place]) -> list[Place]:
    return [place for place in places if place.node.weight > 0]


def _key(
    kernel: KernelState, name: str, number: int, placed: Mapping[str, list[Place]], seats: Seats
) -> RingKey:
    """What a service's ring follows from; the last plan's, where nothing of that has changed."""
    known = kernel.ring_keys.get(name)
    if known is not None and seats.touched is not None and name not in seats.touched:
        return known
    own = _members(placed[name])
    offsets = [seats.seat_of.get(place.identity, NO_SEAT) - number for place in own]
    return RingKey(
        RingName(
            own[0].service.affinity_group if own else "",
            tuple([place.node.id for place in own]),
        ),
        tuple([place.percent if place.identity in seats.eligible else 0 for place in own]),
        tuple([max(0, offset) for offset in offsets]),
    )


def _groups(
    kernel: KernelState,
    keys: Mapping[str, RingKey],
    placed: Mapping[str, list[Place]],
    ids: Mapping[str, int],
    seed: int,
    built: dict[RingName, BuiltRing],
) -> dict[RingKey, _Group]:
    """Services of the same nodes whose seats lie alike."""
    masks: dict[tuple[RingName, tuple[int, ...]], ring.Ring] = {}
    groups: dict[RingKey, _Group] = {}
    for name, key in keys.items():
        group = groups.get(key)
        if group is None:
            members, percents, offsets = key
            if members not in built:
                built[members] = _build(kernel, members, _members(placed[name]), seed)
            content = kernel.ring_contents.get(key)
            if content is None or built[members] is not kernel.built.get(members):
                mask = masks.get((members, percents))
                if mask is None:
                    mask = ring.masked(built[members].ring, *_lenders(percents))
                    masks[members, percents] = mask
                content = _content(mask, offsets)
            group = groups[key] = _Group(content)
        group.ids.append(ids[name])
        group.names.append(name)
    return groups


def _lenders(percents: tuple[int, ...]) -> tuple[list[int], dict[int, int]]:
    """Which members lend all of their slots, and which have only so many per cent of them."""
    dead = [index for index, percent in enumerate(percents) if percent == 0]
    return dead, {index: each for index, each in enumerate(percents) if 0 < each < 100}


def _content(mask: ring.Ring, offsets: tuple[int, ...]) -> SeatRing:
    slots = np.zeros(ENTRIES * LANES, np.uint16)
    # NOBODY is -1, so it finds the last element.
    slots[: ring.SLOTS] = np.array([*offsets, 0], np.uint16)[mask]
    return slots.reshape(ENTRIES, LANES)


def _build(kernel: KernelState, name: RingName, own: list[Place], seed: int) -> BuiltRing:
    before = kernel.built.get(name)
    members = tuple([ring.Member(place.node.id, place.node.weight) for place in own])
    if before is not None and (before.members, before.seed) == (members, seed):
        return before
    return BuiltRing(members, seed, ring.build(members, seed, name.group))


def _kept(
    kernel: KernelState,
    group: _Group,
    held: Mapping[int, int],
    holders: Mapping[int, set[int]],
    taken: Mapping[int, SeatRing],
) -> int | None:
    """A ring that the group's services have already, if it may hold what is to stand there."""
    mine = set(group.ids)
    for place in dict.fromkeys(held[number] for number in group.ids if number in held):
        if place in taken:
            continue
        before = kernel.rings.get(place)
        if holders[place] <= mine or (before is not None and (before == group.content).all()):
            return place
    return None


def slot_writes(kernel: KernelState, after: Rings) -> tuple[list[SlotsWrite], int]:
    """One batch for each ring with the entries that change, and how many slots of services move."""
    writes: list[SlotsWrite] = []
    held = {v.service_id: v.ring for v in kernel.services.values() if not v.retired}
    for place, content in after.contents.items():
        before = kernel.rings.get(place)
        if before is content:
            continue
        changed = np.arange(ENTRIES)
        if before is not None:
            changed = np.flatnonzero((before != content).any(axis=1))
        if changed.size:
            indices = (place * ENTRIES + changed).astype(np.uint32)
            writes.append(SlotsWrite(place, indices, content[changed]))
    moved = 0
    known: dict[tuple[int, int], int] = {}
    for number, place in after.of_service.items():
        way = (held.get(number, -1), place)
        if way not in known:
            known[way] = _moved(kernel.rings.get(way[0]), after.contents[place])
        moved += known[way]
    return writes, moved


def _moved(before: SeatRing | None, after: SeatRing) -> int:
    """Slots that had a node and now have another, or none."""
    if before is None or before is after:
        return 0
    return int(((before != after) & (before != NO_SEAT)).sum())
