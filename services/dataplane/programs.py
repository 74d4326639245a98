"""Bringing the programs up: compile, adopt the pinned maps, attach, and only then commit.

The order is what keeps packets flowing whatever goes wrong: until the new programs are on the
interfaces nothing of the old ones is touched, so a foreign program where one of ours should be, a
source that does not compile, a map whose pin does not fit (`PinMismatch`) and a program that the
verifier refuses all leave the old programs forwarding. TC is attached before XDP: what a new XDP
program passes on must find its TC program.

What is attached is a set (bpf/attachments.py): once the new programs are on their hooks, whatever
of an earlier configuration is on another one is taken off, on all interfaces of the machine. What
cannot be taken off stands among the hooks, with the reason.

Three pins below `prog/`: `xdp_public`, `tc_public`, `tc_private`. Where public and private
interface are one, `tc_public` handles both directions and there is no `tc_private`. Where the
driver takes no native XDP, or the kernel refuses the XDP program alone (it calls a helper of Linux
5.18), the TC program takes the requests too, and the hook's state says why. With `reply_hook =
"xdp"` a fourth, `xdp_private`, takes the replies that TC would.

A flow table of another size becomes the one before a new one (bpf/chain.py), and the programs look
into both. Once the dataplane has seen that no flow lives in the one before, it makes the next
`Programs` with `old_table_is_empty`, attaches these over the present ones, and closes the present
ones: they are compiled already, so this takes a moment. `chained` says what `settings.chained` is,
which `attach` writes in the order that loses nothing: set before the first program is attached that
has a table before its own, cleared after the last one that had is gone.

The map of rings grows in the same way with the number of services: a larger copy, programs over it.
These are compiled in a thread beforehand (`Compiling`): that takes seconds, and a node that dies
then is to be masked.

Where this machine is a node of this LB, `tc_own` takes that node's answers on the way out
(bpf/kernel/own_node.h). The node table says so, later than these programs are attached: so
`serve_itself` puts it on its hook and takes it off, and its pin keeps it there over a restart.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from pyroute2 import IPRoute

from bpf import attach
from bpf.attachments import (
    SPOTS,
    TC,
    TC_EGRESS,
    XDP,
    Attachment,
    Place,
    set_aside,
    take_off_rest,
)
from bpf.chain import FlowTables
from bpf.loader import LoadedObject, compile_programs, fill_cache
from bpf.pins import PinnedMaps
from bpf.syscall import VerifierError
from bus.states import HookState
from conf import LbConfig
from services.dataplane.machine import Interface, Machine
from services.dataplane.maps import ENTRIES

SOURCES = ("xdp.c", "tc.c")
ENTERING = "replica.c"
"""Enters flows that other LBs tell of; on no hook."""
FLOW_WAYS = 16
"""Entries of a bucket of the flow table: one direction of a flow each."""
LEAST_BUCKETS = 16
LEAST_HALF_OPEN_WAYS, MOST_HALF_OPEN_WAYS = 2, 12
"""Some places are always for half-open flows, and some never."""
RING_COUNTS = (16, 80, 320, 1_280)
FRAGS_MTU = 3_000
"""Above this a driver may hand XDP a packet in pieces, and asks for a program that knows it."""


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """What of the configuration decides how the programs are built and where they go."""

    public: str
    private: str
    generic_xdp: bool
    xdp_replies: bool
    conntrack_entries: int
    """Directions of flows, two to a flow, that the table must have room for."""
    half_open_entries: int
    """How many of them half-open flows may take."""
    replicates: bool = False
    """There are other LBs, which are told of flows and tell of theirs."""
    logs_nat: bool = False
    """What becomes of flows is told as events."""

    @classmethod
    def from_config(cls, config: LbConfig) -> ProgramPlan:
        return cls(
            public=config.local.net_interface_public,
            private=config.local.net_interface_private,
            generic_xdp=config.dataplane.xdp == "generic",
            xdp_replies=config.dataplane.reply_hook == "xdp",
            conntrack_entries=config.dataplane.conntrack_entries,
            half_open_entries=config.dataplane.half_open_entries,
            replicates=len(config.quorum.addresses) > 1 and not config.quorum.witness,
            logs_nat=config.log.nat,
        )

    @property
    def notes_flows(self) -> bool:
        """The programs note what becomes of flows, for somebody reads it."""
        return self.replicates or self.logs_nat

    @property
    def sources(self) -> tuple[str, ...]:
        """What is to be compiled."""
        return (*SOURCES, ENTERING) if self.notes_flows else SOURCES

    @property
    def one_arm(self) -> bool:
        return self.public == self.private

    @property
    def flow_buckets(self) -> int:
        """Buckets of the flow table, half of whose places are ever taken.

        A bucket is then full once in a hundred.
        """
        return max(LEAST_BUCKETS, ceil(2 * self.conntrack_entries / FLOW_WAYS))

    @property
    def half_open_ways(self) -> int:
        """Places of each bucket that half-open flows may take."""
        share = round(FLOW_WAYS * self.half_open_entries / self.conntrack_entries)
        return min(max(share, LEAST_HALF_OPEN_WAYS), MOST_HALF_OPEN_WAYS)

    @property
    def defines(self) -> dict[str, str | int]:
        sizes: dict[str, str | int] = {
            "FLOW_BUCKETS": self.flow_buckets,
            "HALF_OPEN_WAYS": self.half_open_ways,
        }
        if self.one_arm:
            sizes["GALE_ONE_ARM"] = 1
        if self.generic_xdp:
            sizes["GALE_GENERIC_XDP"] = 1
        return sizes


def rings_for(services: int) -> int:
    """How many rings the map has room for: one for each service, which mostly share a few, and some
    for those that part from the others. A ring takes 131 kB; the map can only grow.
    """
    return next((rings for rings in RING_COUNTS if services <= rings * 4 // 5), RING_COUNTS[-1])


class Compiling:
    """Images that will be wanted, on their way into the cache."""

    def __init__(
        self, sources: Sequence[str], defines: Sequence[dict[str, str | int]], cache_dir: Path
    ) -> None:
        def fill() -> None:
            for each in defines:
                fill_cache(sources, each, cache_dir)

        self._thread = threading.Thread(target=fill, daemon=True, name="compiling")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()


class Programs:
    """The loaded programs of this process and the hooks they are on."""

    def __init__(
        self,
        plan: ProgramPlan,
        bpf_dir: Path,
        cache_dir: Path,
        netlink: IPRoute,
        *,
        services: int = 0,
        old_table_is_empty: bool = False,
    ) -> None:
        """`services`: how many there are, for each of which there may have to be a ring.
        `old_table_is_empty`: no flow lives in the flow table before the present one.
        """
        self.plan = plan
        self._bpf_dir = bpf_dir
        self._cache_dir = cache_dir
        self._pins = bpf_dir / "prog"
        self._netlink = netlink
        self._without_xdp: dict[str, str] = {}
        self._serves_itself = (self._pins / "tc_own").exists()
        self._left: dict[Attachment, str] = {}
        """What is wanted no longer and could not be taken off, with the reason."""
        self.taken_off: tuple[str, ...] = ()
        """What was wanted no longer, in words."""
        self.migrated: tuple[str, ...] = ()
        """The maps that were copied to a new size."""
        self._refuse_foreign()
        self._maps = PinnedMaps(bpf_dir)
        try:
            self.flow_tables = self._maps.flow_tables(
                plan.flow_buckets, old_is_empty=old_table_is_empty
            )
            """The flow table's size and that of the one before it."""
            self._ring_entries = max(rings_for(services) * ENTRIES, self._maps.entries("ring"))
            self._xdp, self._tc, *entering = compile_programs(
                plan.sources,
                maps=self._maps,
                defines=self._defines(self.flow_tables),
                cache_dir=cache_dir,
            )
            for later in self.flow_tables.later():
                fill_cache(plan.sources, self._defines(later), cache_dir)
            self.entering = entering[0] if entering else None
            """The object with the program that enters flows of other LBs."""
        except BaseException:
            self._maps.close()
            raise

    def compile_for(self, services: int) -> Compiling:
        """What is to succeed these programs once there are so many services, in a thread."""
        larger: dict[str, str | int] = {"RING_MAP_ENTRIES": rings_for(services) * ENTRIES}
        tables = (self.flow_tables, *self.flow_tables.later())
        return Compiling(
            self.plan.sources, [self._defines(each) | larger for each in tables], self._cache_dir
        )

    @property
    def compiled_with(self) -> dict[str, str | int]:
        """What these programs were compiled with."""
        return self._defines(self.flow_tables)

    def _defines(self, tables: FlowTables) -> dict[str, str | int]:
        return self.plan.defines | tables.defines | {"RING_MAP_ENTRIES": self._ring_entries}

    @property
    def chained(self) -> bool:
        """Whether the programs look into the table before: what `settings.chained` must say."""
        return self.flow_tables.chained

    @property
    def resize_waits(self) -> str:
        """Why the flow table does not have the configured size yet; empty when it has."""
        tables = self.flow_tables
        if not tables.waits:
            return ""
        return (
            f"the flow table keeps its {tables.buckets} buckets instead of {tables.wanted}:"
            f" flows still live in the one before it, of {tables.old_buckets}"
        )

    def _refuse_foreign(self) -> None:
        """Before anything is compiled or attached: half of the hooks would be worse than none."""
        plan, pins = self.plan, self._pins
        attach.refuse_foreign(self._netlink, plan.public, pins / "xdp_public", pins / "tc_public")
        if not plan.one_arm:
            pin = pins / "xdp_private" if self._replies_by_xdp else None
            attach.refuse_foreign(self._netlink, plan.private, pin, pins / "tc_private")

    @property
    def _wanted(self) -> dict[Place, str]:
        """By interface and hook, the pin of what is to be there."""
        plan = self.plan
        wanted = {(plan.public, XDP): "xdp_public", (plan.public, TC): "tc_public"}
        if not plan.one_arm:
            wanted[plan.private, TC] = "tc_private"
        if self._replies_by_xdp:
            wanted[plan.private, XDP] = "xdp_private"
        if self._serves_itself:
            wanted[plan.private, TC_EGRESS] = "tc_own"
        return {place: pin for place, pin in wanted.items() if pin not in self._without_xdp}

    @property
    def places(self) -> dict[str, str]:
        """By the pin of each program that is on a hook, the interface."""
        return {pin: interface for (interface, _), pin in self._wanted.items()}

    @property
    def _flavour(self) -> attach.Flavour:
        return "generic" if self.plan.generic_xdp else "native"

    @property
    def objects(self) -> LoadedObject:
        """A loaded object that has all the maps."""
        return self._tc

    def attach(self, machine: Machine) -> tuple[HookState, ...]:
        """Load, attach and pin everything, or raise with the old programs still in place."""
        plan, netlink = self.plan, self._netlink
        self._machine = machine
        tc_public = self._tc.function("gale_tc_public", "tc")
        tc_private = self._tc.function("gale_tc_private", "tc")
        loaded = [
            (pin, at.name, fd)
            for pin, name, at in self._xdp_hooks(machine)
            if (fd := self._load_xdp(pin, name, frags=at.mtu > FRAGS_MTU)) is not None
        ]
        self._maps.prepare()
        set_aside(netlink, self._bpf_dir, self._wanted)
        if self.chained:
            self._write_chained()
        if not plan.one_arm:
            attach.attach_tc(netlink, plan.private, tc_private, self._pins / "tc_private")
        attach.attach_tc(netlink, plan.public, tc_public, self._pins / "tc_public")
        if self._serves_itself:
            self._attach_own()
        for pin, interface, fd in loaded:
            self._attach_xdp(pin, interface, fd)
        rest = take_off_rest(netlink, self._bpf_dir, self._wanted)
        self._left = {each: problem for each, problem in rest.items() if problem}
        self.taken_off = tuple(f"{each.interface}: {each}" for each in rest.keys() - self._left)
        if not self.chained:
            self._write_chained()
        self.migrated = self._maps.migrated
        self._maps.commit()
        return self.hooks()

    def serve_itself(self, wanted: bool) -> None:
        """Whether this machine is a node of this LB, from now on. Raises what attaching raises."""
        if wanted and not self._serves_itself:
            self._attach_own()
        elif self._serves_itself and not wanted:
            attach.detach_tc(
                self._netlink, self.plan.private, self._pins / "tc_own", attach.FIRST_ON_EGRESS
            )
        self._serves_itself = wanted

    def _attach_own(self) -> None:
        fd, pin = self._tc.function("gale_tc_own", "tc"), self._pins / "tc_own"
        attach.attach_tc(self._netlink, self.plan.private, fd, pin, attach.FIRST_ON_EGRESS)

    def _xdp_hooks(self, machine: Machine) -> list[tuple[str, str, Interface]]:
        """Pin, function and interface of each XDP program that is wanted."""
        wanted = [("xdp_public", "gale_xdp_public", machine.public)]
        if self._replies_by_xdp:
            wanted.append(("xdp_private", "gale_xdp_reply", machine.private))
        return wanted

    def takes_pieces(self, machine: Machine) -> bool:
        """Whether an XDP program here must know of frames in pieces."""
        return any(at.mtu > FRAGS_MTU for _, _, at in self._xdp_hooks(machine))

    def put_on(self, xdp: LoadedObject | None = None, tc: LoadedObject | None = None) -> None:
        """After `attach`: these programs over the same maps in the place of the ordinary ones; and
        without any, the ordinary ones again. Each takes its place in one step.

        They have been loaded, for frames in pieces if `takes_pieces`. Raises what attaching raises.
        """
        netlink, flavour = self._netlink, self._flavour
        for (interface, hook), pin in self._wanted.items():
            if hook in SPOTS:
                fd = (tc or self._tc).function(f"gale_{pin}", "tc")
                attach.attach_tc(netlink, interface, fd, self._pins / pin, SPOTS[hook])
        for pin, name, at in self._xdp_hooks(self._machine):
            if pin not in self.places:
                continue
            pieces = self.takes_pieces(self._machine) if xdp else at.mtu > FRAGS_MTU
            fd = (xdp or self._xdp).function(name, "xdp", frags=pieces)
            attach.attach_xdp(netlink, at.name, fd, self._pins / pin, flavour)

    def _write_chained(self) -> None:
        settings = self.objects.bpf[b"settings"]
        leaf = settings[0]
        if bool(leaf.chained) != self.chained:
            leaf.chained = self.chained
            settings[0] = leaf

    @property
    def _replies_by_xdp(self) -> bool:
        return self.plan.xdp_replies and not self.plan.one_arm

    def _load_xdp(self, pin: str, name: str, *, frags: bool) -> int | None:
        """None where the kernel refuses it: TC's programs, which it has taken, can do all alone."""
        try:
            return self._xdp.function(name, "xdp", frags=frags)
        except VerifierError as refusal:
            self._without_xdp[pin] = f"{refusal.summary}; TC takes its packets"
            return None

    def _attach_xdp(self, pin: str, interface: str, fd: int) -> None:
        try:
            attach.attach_xdp(self._netlink, interface, fd, self._pins / pin, self._flavour)
            self._without_xdp.pop(pin, None)
        except attach.NativeXdpUnsupported as reason:
            self._without_xdp[pin] = f"{reason}; TC takes its packets"

    def hooks(self) -> tuple[HookState, ...]:
        """What is on the interfaces now, whoever put it there."""
        plan, netlink = self.plan, self._netlink
        states = [self._xdp_state("xdp_public", plan.public)]
        if self._replies_by_xdp:
            states.append(self._xdp_state("xdp_private", plan.private))
        states.append(_state(attach.tc_state(netlink, plan.public, self._pins / "tc_public")))
        if not plan.one_arm:
            states.append(_state(attach.tc_state(netlink, plan.private, self._pins / "tc_private")))
        if self._serves_itself:
            pin = self._pins / "tc_own"
            states.append(
                _state(attach.tc_state(netlink, plan.private, pin, attach.FIRST_ON_EGRESS))
            )
        for each, problem in self._left.items():
            detail = f"not wanted any more, and it cannot be taken off: {problem}"
            states.append(HookState(each.name, each.interface, True, each.flavour, detail))
        return tuple(states)

    def lost(self, hooks: tuple[HookState, ...]) -> list[str]:
        """Which of these are not taken although they could be."""
        return [
            hook.program
            for hook in hooks
            if not hook.attached and hook.program not in self._without_xdp
        ]

    def _xdp_state(self, pin: str, interface: str) -> HookState:
        state = _state(attach.xdp_state(self._netlink, interface, self._pins / pin))
        if pin in self._without_xdp and not state.attached:
            return HookState(pin, interface, False, "", self._without_xdp[pin])
        return state

    def close(self) -> None:
        """Give back the fds. What is pinned and attached goes on without us."""
        self._xdp.close()
        self._tc.close()
        if self.entering is not None:
            self.entering.close()
        self._maps.close()


def _state(hook: attach.Hook) -> HookState:
    return HookState(hook.program, hook.interface, hook.attached, hook.flavour, hook.detail)
