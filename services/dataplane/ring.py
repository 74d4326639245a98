"""The ring: which node takes a new flow. Maglev's permutations (Eisenbud et al., NSDI 2016). Pure.

**Theory.** Each node has its own permutation of the slots: it starts at `offset` and goes on in
strides of `skip`; the number of slots is prime, so every stride visits every slot. Offsets and
skips come from a keyed hash of service and node id. Its seed is 64 bits of the agreed node table:
all LBs build the same ring, and nobody outside can tell which flows will meet.

The paper lets the nodes take turns, each taking the first slot of its permutation that is still
free. That is as even as can be, but towards the end the nodes fight for what is left, and every
small change upsets those last slots: of 100 nodes, removing one moves 1.55 times its share. Here
shares may differ by `TOLERANCE`, and removing one of 100 moves 1.15 times its share, with every
share within 2 % of fair; one of 1,000, about 5 times instead of the paper's 6.6:

1. *Claims.* The nodes go along their permutations in step, claiming whatever stands there; a slot
   belongs to the first that claims it. Which of two nodes claims a slot first depends on no third
   node, so this step alone would move nothing but the slots of the node that goes.
2. *Exchange.* While a share is out of tolerance, the richest node gives its latest claim back, in
   favour of the poorest.
3. *Handing out.* Those in whose favour that was take, in that order, the next slot of their
   permutations that was given back.

A node's weight is the frequency of its claims, and its part in what is fair, rich and poor. Ties go
by node id, so the order of the list does not matter. It takes 15 ms for 3 nodes, 50 for 1,000.

**Masking.** A node that is not to be used, but still known, lends its slots instead of losing them.
`masked` gives each to its *next candidate*: the first living node met on a walk over the ring that
depends on the slot alone. So no flow of another node moves; what a second death changes is what
that second node had; and a node that comes back finds exactly its own slots. Slots stand for nodes
in proportion to their weights, so the walk divides what is orphaned by weight too. A walk is as
long as there are dead for each living: 2 ms with half of 1,000 nodes dead.

**A part of its weight.** A node in slow start has the first slots of its own, in an order that no
percentage changes, and lends the others. What is orphaned goes, by the walk, to those slots as to
any: so with p per cent it has what a weight of p per cent would give it, and when p rises, slots
move to it and to nobody else, each of them once. Two nodes that rise at a time may pass slots of
the lent ones on to one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SLOTS = 65_537
"""A prime, over 100 times the nodes of a large service, as the paper advises."""

NOBODY = -1
"""In a ring: no node takes this slot, because there is none."""

TOLERANCE = 0.019
"""How far from its fair share a node may be: the price of moving little."""

_WALK_FACTOR = 40_503
"""Scatters neighbouring slots over the strides of `masked`; any large odd number does."""

_PART_FACTOR = 25_717
"""Scatters a node's own slots over the order in which it gets them; likewise."""

Ring = NDArray[np.int32]
_Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Member:
    """A node that may take new flows of a service; weight 0 takes none."""

    node_id: str
    weight: int


def build(members: Sequence[Member], seed: int, service: str) -> Ring:
    """The ring of a service: for each slot the index into `members` of its node, or NOBODY."""
    if len({member.node_id for member in members}) != len(members):
        raise ValueError(f"service {service}: a node is listed twice")
    eligible = [index for index, member in enumerate(members) if member.weight > 0]
    if not eligible:
        return np.full(SLOTS, NOBODY, np.int32)
    eligible.sort(key=lambda index: members[index].node_id)
    weights = [members[index].weight for index in eligible]
    key = blake2b(service.encode(), key=seed.to_bytes(8, "little"), digest_size=32).digest()
    permutations = [_permutation(key, members[index].node_id) for index in eligible]
    owner, claimed = _claim(permutations, weights)
    gives, takers_in_turn = _exchange(np.bincount(owner, minlength=len(weights)), weights)
    _hand_out(owner, _latest(owner, claimed, gives), takers_in_turn, permutations)
    return np.array(eligible, np.int32)[owner]


def masked(ring: Ring, dead: Iterable[int], percents: Mapping[int, int] | None = None) -> Ring:
    """The ring without the members `dead`, and with those in `percents` at so much of their slots.

    Only slots that are lent change; all to NOBODY if no member lives.
    """
    gone = np.isin(ring, np.fromiter(dead, np.int32))
    if percents:
        gone |= _lent(ring, percents)
    result = ring.copy()
    if gone.all():
        result[:] = NOBODY
        return result
    orphans = np.flatnonzero(gone)
    strides = 1 + orphans * _WALK_FACTOR % (SLOTS - 1)
    here = orphans
    while orphans.size:
        here = (here + strides) % SLOTS
        found = ~gone[here]
        result[orphans[found]] = ring[here[found]]
        orphans, here, strides = orphans[~found], here[~found], strides[~found]
    return result


def _lent(ring: Ring, percents: Mapping[int, int]) -> NDArray[np.bool_]:
    """The slots that members lend who have only so many per cent of theirs, 1 slot at least."""
    kept = np.bincount(ring, minlength=max(percents) + 1)
    for member, percent in percents.items():
        kept[member] = max(1, int(kept[member]) * percent // 100)
    in_turn = np.lexsort((np.arange(SLOTS) * _PART_FACTOR % SLOTS, ring))
    member_of = ring[in_turn]
    place = np.arange(SLOTS) - np.searchsorted(member_of, member_of)
    lent = np.zeros(SLOTS, np.bool_)
    lent[in_turn] = place >= kept[member_of]
    return lent


def _permutation(key: bytes, node_id: str) -> tuple[int, int]:
    """A node's offset and skip: where its permutation of the slots starts, and its stride."""
    digest = blake2b(node_id.encode(), key=key, digest_size=16).digest()
    offset = int.from_bytes(digest[:8], "little") % SLOTS
    skip = int.from_bytes(digest[8:], "little") % (SLOTS - 1) + 1
    return offset, skip


def _claim(permutations: list[tuple[int, int]], weights: list[int]) -> tuple[_Numbers, _Numbers]:
    """Step 1: each slot's owner, and when it was claimed (an increasing number).

    The heaviest node claims in every round, one of weight w makes its claim k in the first round
    that is at least k * heaviest / w. A batch of rounds has about as many claims as half the slots.
    """
    offsets, skips = np.array(permutations, np.int64).T
    weight = np.array(weights, np.int64)
    heaviest, total = max(weights), sum(weights)
    batch = SLOTS * heaviest // total // 2 + 1
    owner = np.full(SLOTS, NOBODY, np.int64)
    claimed = np.zeros(SLOTS, np.int64)
    made = np.zeros_like(weight)
    rounds = claims = 0
    while (owner == NOBODY).any():
        rounds += batch
        until = (rounds - 1) * weight // heaviest + 1
        who = np.repeat(np.arange(weight.size), until - made)
        number = np.arange(who.size) - np.repeat(np.cumsum(until - made) - until, until - made)
        slot = (offsets[who] + number * skips[who]) % SLOTS
        when = -(-number * heaviest // weight[who])
        fresh = np.flatnonzero(owner[slot] == NOBODY)
        fresh = fresh[np.argsort(when[fresh], kind="stable")]
        # A slot's last assignment stands, so backwards its first claim does.
        winner = np.full(SLOTS, NOBODY, np.int64)
        winner[slot[fresh[::-1]]] = np.arange(fresh.size)[::-1]
        won = np.flatnonzero(winner != NOBODY)
        owner[won] = who[fresh[winner[won]]]
        claimed[won] = claims + winner[won]
        claims += fresh.size
        made = until
    return owner, claimed


def _exchange(held: _Numbers, weights: list[int]) -> tuple[_Numbers, list[int]]:
    """Step 2: how many slots each node gives back, and who takes one, in order.

    It ends when all shares are within the tolerance, or when one slot more would overturn the order
    (nodes with so few slots that the tolerance is none).
    """
    weight = np.array(weights, np.float64)
    share = held / weight
    least, most = (SLOTS / sum(weights) * factor for factor in (1 - TOLERANCE, 1 + TOLERANCE))
    gives = np.zeros_like(held)
    takers: list[int] = []
    while True:
        rich, poor = int(share.argmax()), int(share.argmin())
        if share[rich] <= most and share[poor] >= least:
            return gives, takers
        richer, poorer = share[rich] - 1 / weight[rich], share[poor] + 1 / weight[poor]
        if richer < poorer:
            return gives, takers
        share[rich], share[poor] = richer, poorer
        gives[rich] += 1
        takers.append(poor)


def _latest(owner: _Numbers, claimed: _Numbers, gives: _Numbers) -> _Numbers:
    """The slots that are given back: of each node, those it claimed last."""
    latest_first = np.lexsort((-claimed, owner))
    giver = owner[latest_first]
    place = np.arange(SLOTS) - np.searchsorted(giver, giver)
    return latest_first[place < gives[giver]]


def _hand_out(
    owner: _Numbers, given: _Numbers, takers: list[int], permutations: list[tuple[int, int]]
) -> None:
    """Step 3: each taker in turn gets the next slot of its permutation that was given back."""
    free = bytearray(SLOTS)
    for slot in given.tolist():
        free[slot] = 1
    position = [offset for offset, _ in permutations]
    for node in takers:
        slot, skip = position[node], permutations[node][1]
        while not free[slot]:
            slot = (slot + skip) % SLOTS
        free[slot] = 0
        owner[slot] = node
        position[node] = slot
