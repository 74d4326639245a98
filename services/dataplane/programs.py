"""Bringing the programs up: compile, adopt the pinned maps, attach, and only then commit.

The order is what keeps packets flowing whatever goes wrong: until the new programs are on the
interfaces nothing of the old ones is touched, so a source that does not compile, a map whose pin
does not fit (`PinMismatch`) and a program the verifier refuses all leave the old programs
forwarding. TC is attached before XDP: what a new XDP program passes on must find its TC program.

Three pins below `prog/`: `xdp_public`, `tc_public`, `tc_private`. Where public and private interface
are one, `tc_public` handles both directions and there is no `tc_private`. Without native XDP the TC
program takes the requests too, and the hook's state says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from bus.messages import HookState
from conf import LbConfig
from services.dataplane import attach
from services.dataplane.loader import LoadedObject, compile_program
from services.dataplane.pins import PinnedMaps

FRAGS_MTU = 3_000
"""Above this a driver may hand XDP a packet in pieces, and asks for a program that knows it."""


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """What of the configuration decides how the programs are built and where they go."""

    public: str
    private: str
    generic_xdp: bool
    conntrack_entries: int
    half_open_entries: int

    @classmethod
    def from_config(cls, config: LbConfig) -> ProgramPlan:
        return cls(
            public=config.local.net_interface_public,
            private=config.local.net_interface_private,
            generic_xdp=config.dataplane.xdp == "generic",
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

    def __init__(self, plan: ProgramPlan, bpf_dir: Path, netlink: IPRoute) -> None:
        self.plan = plan
        self._pins = bpf_dir / "prog"
        self._netlink = netlink
        self._maps = PinnedMaps(bpf_dir)
        self._xdp: LoadedObject = compile_program(
            "xdp.c", maps=self._maps, defines=plan.defines
        )
        self._tc: LoadedObject = compile_program("tc.c", maps=self._maps, defines=plan.defines)
        self._no_xdp = ""

    @property
    def objects(self) -> LoadedObject:
        """A loaded object that has all the maps."""
        return self._tc

    @property
    def migrated(self) -> tuple[str, ...]:
        return self._maps.migrated

    def attach(self, public_mtu: int) -> tuple[HookState, ...]:
        """Load, attach and pin everything, or raise with the old programs still in place."""
        tc_public = self._tc.function("gale_tc_public", "tc")
        tc_private = self._tc.function("gale_tc_private", "tc")
        xdp = self._xdp.function("gale_xdp_public", "xdp", frags=public_mtu > FRAGS_MTU)
        plan, netlink = self.plan, self._netlink
        if not plan.one_arm:
            attach.attach_tc(netlink, plan.private, tc_private, self._pins / "tc_private")
        attach.attach_tc(netlink, plan.public, tc_public, self._pins / "tc_public")
        try:
            flavour: attach.Flavour = "generic" if plan.generic_xdp else "native"
            attach.attach_xdp(netlink, plan.public, xdp, self._pins / "xdp_public", flavour)
            self._no_xdp = ""
        except attach.NativeXdpUnsupported as reason:
            self._no_xdp = f"{reason}; TC takes the requests"
        self._maps.commit()
        return self.hooks()

    def hooks(self) -> tuple[HookState, ...]:
        """What is on the interfaces now, whoever put it there."""
        plan, netlink = self.plan, self._netlink
        xdp = attach.xdp_state(netlink, plan.public, self._pins / "xdp_public")
        if self._no_xdp and not xdp.attached:
            xdp = HookState(xdp.program, xdp.interface, False, "", self._no_xdp)
        states = [xdp, attach.tc_state(netlink, plan.public, self._pins / "tc_public")]
        if not plan.one_arm:
            states.append(attach.tc_state(netlink, plan.private, self._pins / "tc_private"))
        return tuple(states)

    def close(self) -> None:
        """Give back the fds. What is pinned and attached goes on without us."""
        self._xdp.close()
        self._tc.close()
        self._maps.close()
