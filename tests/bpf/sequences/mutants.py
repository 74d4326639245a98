"""Faults put into the C sources on purpose: each must be caught, or the model has a hole.

    python -m tests.bpf.sequences.mutants [NAME …]

A mutant is a place in a header of bpf/kernel/ and what is to stand there instead. It is made in a
copy of the sources, compiled, and played until the first seed that fails with it and not without.
Exit status 1: some were not caught within `SEEDS`, or their place is not in the sources any more.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpf.loader import SOURCE_DIR
from tests.bpf.harness import SMALL_TABLES, Rig
from tests.bpf.scene import Scene
from tests.bpf.sequences.balancer import RealBalancer, pinned_to_cpu
from tests.bpf.sequences.trial import play_seed

SEEDS = 2000


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    header: str
    """Its path within bpf/."""
    old: str
    """Stands there exactly once."""
    new: str


MUTANTS = (
    Mutant(
        "any RST ends a flow",
        "flow.h",
        "\tif (number == theirs->acked)\n\t\treturn FLOW_TCP_RESET;",
        "\tif (1)\n\t\treturn FLOW_TCP_RESET;",
    ),
    Mutant(
        "no RST ends a flow",
        "flow.h",
        "\tif (number == theirs->acked)\n\t\treturn FLOW_TCP_RESET;",
        "\tif (0)\n\t\treturn FLOW_TCP_RESET;",
    ),
    Mutant(
        "a RST in doubt stays in doubt",
        "flow.h",
        "\tmine->flags &= ~FLOW_DOUBTED;\n",
        "\t/* nothing */\n",
    ),
    Mutant(
        "any FIN counts",
        "flow.h",
        "\tif ((mine->flags & FLOW_FIN) || is_after(theirs->acked, fin) || "
        "is_after(fin, theirs->edge))\n"
        "\t\treturn;",
        "\tif (mine->flags & FLOW_FIN)\n\t\treturn;",
    ),
    Mutant(
        "two FINs are the end, acknowledged or not",
        "flow.h",
        "\treturn (one->flags & other->flags & FLOW_FIN) && !is_after(one->end, other->acked) &&\n"
        "\t       !is_after(other->end, one->acked);",
        "\treturn one->flags & other->flags & FLOW_FIN;",
    ),
    Mutant(
        "an early FIN is forgotten",
        "flow.h",
        "\tmine->flags |= FLOW_EARLY_FIN;\n\ttheirs->flags |= FLOW_WATCHED;\n",
        "\ttheirs->flags &= ~FLOW_WATCHED;\n",
    ),
    Mutant(
        "numbers are learned from anybody",
        "flow.h",
        "\tif (unlikely(!is_near(packet->tcp->sequence, mine->end, mine->reach) ||\n"
        "\t\t     !is_acknowledgeable(packet->tcp->acknowledged, mine) ||",
        "\tif (unlikely(",
    ),
    Mutant(
        "acknowledgements are not learned",
        "flow.h",
        "\t\tmine->acked = packet->tcp->acknowledged;\n\tif (is_after(edge",
        "\t\t;\n\tif (is_after(edge",
    ),
    Mutant(
        "what is sent is not learned",
        "flow.h",
        "\tif (is_after(end, mine->end))\n\t\tmine->end = end;",
        "\t/* nothing */",
    ),
    Mutant(
        "any acknowledgement completes the handshake",
        "flow.h",
        "\t       is_after(packet->tcp->acknowledged, pair->request->acked) &&\n"
        "\t       !is_after(packet->tcp->acknowledged, pair->reply->end);",
        "\t       1;",
    ),
    Mutant(
        "only the very next number completes the handshake",
        "flow.h",
        "\t       !is_after(packet->tcp->acknowledged, pair->reply->end);",
        "\t       packet->tcp->acknowledged == pair->request->acked + 1;",
    ),
    Mutant(
        "windows are not scaled",
        "flow.h",
        "\t__u32 edge = packet->tcp->acknowledged + "
        "((__u32)packet->tcp->window << (mine->scale & 15));",
        "\t__u32 edge = packet->tcp->acknowledged + (__u32)packet->tcp->window;",
    ),
    Mutant(
        "a SYN on a living flow begins it anew",
        "reply.h",
        "\treturn after && packet->tcp->acknowledged - after <= MOST_SYN_DATA;",
        "\treturn 1;",
    ),
    Mutant(
        "a SYN-ACK on a living flow never begins it anew",
        "reply.h",
        "\treturn after && packet->tcp->acknowledged - after <= MOST_SYN_DATA;",
        "\treturn 0;",
    ),
    Mutant(
        "a closed flow's port is given away",
        "flow_table.h",
        "\tif (!is_forgeable(holder->state))\n\t\treturn CLAIM_TAKEN;",
        "\tif (is_protected(holder->state))\n\t\treturn CLAIM_TAKEN;",
    ),
    Mutant(
        "any flow's port is given away",
        "flow_table.h",
        "\tif (!is_forgeable(holder->state))\n\t\treturn CLAIM_TAKEN;\n",
        "\t/* nothing */\n",
    ),
    Mutant(
        "a deadline is not looked at",
        "flow_table.h",
        "static __always_inline int has_passed(__u32 moment, __u32 now)\n"
        "{\n"
        "\treturn (__s32)(moment - now) <= 0;",
        "static __always_inline int has_passed(__u32 moment, __u32 now)\n{\n\treturn 0;",
    ),
    Mutant(
        "what lives on is not renewed",
        "flow.h",
        "\tmine->deadline = theirs->deadline = deadline;\n",
        "\tif (is_closed(state))\n\t\tmine->deadline = theirs->deadline = deadline;\n",
    ),
    Mutant(
        "who comes back gets another port",
        "l4.h",
        "\t       (seat->flags & SEAT_UP) && !place->is_old &&",
        "\t       0 &&",
    ),
    Mutant(
        "a client's RST in the handshake forgets the flow",
        "l4.h",
        "\t\tif (state == FLOW_TCP_ANSWERED && packet->tcp->sequence == pair->reply->acked)",
        "\t\tif (1)",
    ),
    Mutant(
        "the node's port is not put back",
        "nat.h",
        "\treturn delta16(packet->key.sport, to->sport) + delta16(packet->key.dport, to->dport);",
        "\treturn delta16(packet->key.sport, to->sport);",
    ),
)


def by_name(name: str) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.name == name)


@contextmanager
def sources_with(mutant: Mutant) -> Iterator[Path]:
    """A copy of bpf/'s C sources with the fault in it. Raises ValueError if there is no place."""
    with tempfile.TemporaryDirectory(prefix="gale-mutant-") as folder:
        copy = Path(folder) / "bpf"
        # A header that is missing beside the one that includes it would be taken from the
        # original, unchanged: so all of them come along.
        shutil.copytree(SOURCE_DIR, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        header = copy / mutant.header
        text = header.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.header}: {text.count(mutant.old)} places: {mutant.old}")
        header.write_text(text.replace(mutant.old, mutant.new))
        yield copy


def balancer_with(mutant: Mutant | None) -> RealBalancer:
    """The programs with that fault; None: without any."""
    if mutant is None:
        return RealBalancer(Scene(Rig(dict(SMALL_TABLES))))
    with sources_with(mutant) as sources:
        return RealBalancer(Scene(Rig(dict(SMALL_TABLES), sources)))


def first_catch(mutant: Mutant, sound: RealBalancer) -> tuple[int, str] | None:
    """The first seed that fails with the fault and not without, and how it fails."""
    faulty = balancer_with(mutant)
    for seed in range(SEEDS):
        failure = play_seed(seed, faulty).failure
        if failure is not None and play_seed(seed, sound).failure is None:
            return seed, failure.text
    return None


def main(names: list[str]) -> int:
    missed = 0
    with pinned_to_cpu(0):
        sound = balancer_with(None)
        for mutant in [by_name(name) for name in names] or MUTANTS:
            try:
                caught = first_catch(mutant, sound)
                said = f"seed {caught[0]}: {caught[1]}" if caught else f"not within {SEEDS} seeds"
            except ValueError as error:
                caught, said = None, str(error)
            missed += caught is None
            print(f"{'caught' if caught else 'MISSED'}  {mutant.name}  ({said})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
