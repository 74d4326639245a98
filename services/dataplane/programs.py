"""Bringing the programs up: compile, adopt the pinned maps, attach, and only then commit.

The order is what keeps packets flowing whatever goes wrong: until the new programs are on the
interfaces nothing of the old ones is touched, so a foreign program where one of ours should be, a
source that does not compile, a map whose pin does not fit (`PinMismatch`) and a program that the
verifier refuses all leave the old programs forwarding. TC is attached before XDP: what a new XDP
program passes on must find its TC program.

Three pins below `prog/`: `xdp_public`, `tc_public`, `tc_private`. Where public and private
interface are one, `tc_public` handles both directions and there is no `tc_private`. Without native
XDP the TC program takes the requests too, and the hook's state says why. With `reply_hook = "xdp"`
a fourth, `xdp_private`, takes the replies that TC would.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from bpf import attach
from bpf.loader import LoadedObject, compile_programs
from bpf.pins import PinnedMaps
from bus.messages import HookState
from conf import LbConfig
from services.dataplane.machine import Machine

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
    half_open_entries: int

    @classmethod
    def from_config(cls, config: LbConfig) -> ProgramPlan:
        return cls(
            public=config.local.net_interface_public,
            private=config.local.net_interface_private,
            generic_xdp=config.dataplane.xdp == "generic",
            xdp_replies=config.dataplane.reply_hook == "xdp",
            conntrack_entries=config.dataplane.conntrack_entries,
            half_open_entries=config.dataplane.half_open_entries,
        )

    @property
    def one_arm(self) -> bool:
        return self.public == self.private

    @property
    def defines(self) -> dict[str, str | int]:
        sizes: dict[str, str | int] = {
            "CONNTRACK_ENTRIES": self.conntrack_entries,
            "HALF_OPEN_ENTRIES": self.half_open_entries,
        }
        return sizes | ({"GALE_ONE_ARM": 1} if self.one_arm else {})


class Programs:
    """The loaded programs of this process and the hooks they are on."""

    def __init__(self, plan: ProgramPlan, bpf_dir: Path, cache_dir: Path, netlink: IPRoute) -> None:
        self.plan = plan
        self._pins = bpf_dir / "prog"
        self._netlink = netlink
        self._without_xdp: dict[str, str] = {}
        self.migrated: tuple[str, ...] = ()
        """The maps that were copied to a new size."""
        self._refuse_foreign()
        self._maps = PinnedMaps(bpf_dir)
        try:
            self._xdp, self._tc = compile_programs(
                ["xdp.c", "tc.c"], maps=self._maps, defines=plan.defines, cache_dir=cache_dir
            )
        except BaseException:
            self._maps.close()
            raise

    def _refuse_foreign(self) -> None:
        """Before anything is compiled or attached: half of the hooks would be worse than none."""
        plan = self.plan
        attach.refuse_foreign(self._netlink, plan.public, self._pins / "xdp_public")
        if not plan.one_arm:
            pin = self._pins / "xdp_private" if self._replies_by_xdp else None
            attach.refuse_foreign(self._netlink, plan.private, pin)

    @property
    def objects(self) -> LoadedObject:
        """A loaded object that has all the maps."""
        return self._tc

    def attach(self, machine: Machine) -> tuple[HookState, ...]:
        """Load, attach and pin everything, or raise with the old programs still in place."""
        plan, netlink = self.plan, self._netlink
        tc_public = self._tc.function("gale_tc_public", "tc")
        tc_private = self._tc.function("gale_tc_private", "tc")
        xdp = [("xdp_public", "gale_xdp_public", machine.public)]
        if self._replies_by_xdp:
            xdp.append(("xdp_private", "gale_xdp_reply", machine.private))
        loaded = [
            (pin, at.name, self._xdp.function(name, "xdp", frags=at.mtu > FRAGS_MTU))
            for pin, name, at in xdp
        ]
        if not plan.one_arm:
            attach.attach_tc(netlink, plan.private, tc_private, self._pins / "tc_private")
        attach.attach_tc(netlink, plan.public, tc_public, self._pins / "tc_public")
        for pin, interface, fd in loaded:
            self._attach_xdp(pin, interface, fd)
        self.migrated = self._maps.migrated
        self._maps.commit()
        return self.hooks()

    @property
    def _replies_by_xdp(self) -> bool:
        return self.plan.xdp_replies and not self.plan.one_arm

    def _attach_xdp(self, pin: str, interface: str, fd: int) -> None:
        flavour: attach.Flavour = "generic" if self.plan.generic_xdp else "native"
        try:
            attach.attach_xdp(self._netlink, interface, fd, self._pins / pin, flavour)
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
        self._maps.close()


def _state(hook: attach.Hook) -> HookState:
    return HookState(hook.program, hook.interface, hook.attached, hook.flavour, hook.detail)
