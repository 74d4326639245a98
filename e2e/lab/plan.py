"""Who is in the lab and under which name and address: the facts that others may rely on.

    public 10.80.0.0/24    client .2     lb-i .10+i                 router .254
    private 10.81.0.0/24                 lb-i .10+i    node-i .20+i router .254
    shared: no node-i, each lb-i is a node as well
    floating: the VIP 10.80.0.100, and 10.81.0.100 to .103, which nodes see of it in mode l4
    one interface: nodes are on the public network too, as 10.80.0.20+i, and see 10.80.0.101 to .104

Every machine is a network namespace `gale-<machine>`; a further one, `gale-switch`, holds the two
bridges, so that nothing of the host's own network is touched. A machine's interface is called
after its network (`pub0`, `priv0`); the switch's end of that cable is `<machine>-pub`.

Pure: it names things and creates none.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT_DIR = Path("/run/gale/lab")
KEYS_DIR = ROOT_DIR / "keys"
NETNS_DIR = Path("/run/netns")
CHECKOUT_DIR = Path(__file__).resolve().parents[2]
CLIENT = "client"
ROUTER = "router"
SWITCH = "switch"
PROCESSES = ("dataplane", "health", "quorum", "api")
QUORUM_PORT = 8090
"""Where LBs hear one another, on the private network."""
WITNESS = "witness"
"""The group of supervisord, and the directory, of the machine that only votes."""
FIRST_API_PORT = 5560
"""The API of LB i answers on the host at 127.0.0.1, this port + i."""
OUR_NAMESPACE = re.compile(r"gale-(client|router|switch|lb-\d+|node-\d+)")


@dataclass(frozen=True)
class Network:
    """One bridge of the switch."""

    bridge: str
    interface: str
    prefix: str

    def address(self, host: int) -> str:
        return f"{self.prefix}.{host}"


PUBLIC = Network("public", "pub0", "10.80.0")
PRIVATE = Network("private", "priv0", "10.81.0")
ROUTER_HOST = 254
VIP = PUBLIC.address(100)
SNAT_ADDRESSES = tuple(PRIVATE.address(host) for host in range(100, 104))
"""As many ports for each LB as it has on an address of its own."""
SNAT_NETWORK = f"{SNAT_ADDRESSES[0]}/30"
"""These four and no others."""


@dataclass(frozen=True)
class Link:
    """A machine's interface and the cable to its port on the switch."""

    machine: str
    network: Network
    host: int

    @property
    def address(self) -> str:
        return self.network.address(self.host)

    @property
    def port(self) -> str:
        return f"{self.machine}-{self.network.interface.removesuffix('0')}"


@dataclass(frozen=True)
class Service:
    """A service of the LBs as a node sees it: `port` is where its server listens."""

    name: str
    port: int
    protocol: str


SERVICES = (
    Service("default", 8080, "tcp"),
    Service("echo", 9000, "tcp"),
    Service("udp", 5300, "udp"),
)
"""Unless an extra file says otherwise; every node serves all of them, on the VIP's port."""
VLAN_ID = 7
OUTER_BYTES_ROOM = 100
"""By how much packets on the private network may be longer where a service is of mode L3, so that
a whole packet of a client fits through with its outer header (20 bytes of IPIP, 32 of GUE)."""


@dataclass(frozen=True)
class Plan:
    """How large a lab is, and from that everything's name."""

    lbs: int = 1
    nodes: int = 3
    mode: str = "l4"
    mtu: int = 1500
    vlan: bool = False
    """Between the switch and the LBs' public interface IPv4 goes with a tag, both ways."""
    devices: tuple[str, ...] = ()
    """Of what kind each LB's interfaces are, `PUBLIC/PRIVATE` (see `devices`); the last one holds
    for all further LBs. None: veth/veth."""
    keys: bool = False
    """Whether the machines know one another by keys."""
    names: bool = False
    """Load balancers are named in the files, and found by multicast DNS on the private network."""
    floating: bool = True
    """The VIP is of all LBs together. False: each has its own public address for one, as where the
    configuration names no virtual IPs, and decides alone."""
    one_interface: bool = False
    """LBs have the public interface for both sides; nodes and clients are on its network."""
    witness: bool = False
    """The first node's machine has a vote in the LBs' quorum."""
    shared: bool = False
    """Each LB's machine is a node too, and there are no others: `nodes` says nothing then."""
    emulated: bool = False
    """On a machine that is emulated, some thirty times as slow: all is waited for longer, and the
    servers have no file that takes a minute to make."""

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def lb_names(self) -> tuple[str, ...]:
        return tuple(f"lb-{i}" for i in range(self.lbs))

    @property
    def node_names(self) -> tuple[str, ...]:
        return self.lb_names if self.shared else tuple(f"node-{i}" for i in range(self.nodes))

    @property
    def supervised(self) -> tuple[str, ...]:
        """The machines that Gale runs on, each once."""
        return tuple(dict.fromkeys((*self.lb_names, *self.node_names)))

    @property
    def machines(self) -> tuple[str, ...]:
        return (CLIENT, ROUTER, *self.supervised)

    @property
    def voters(self) -> tuple[str, ...]:
        """The machines that agree with one another; an LB that has no others decides alone."""
        witness = self.node_names[:1] if self.witness else ()
        voters = (*self.lb_names, *witness)
        return voters if self.floating and len(voters) > 1 else ()

    def links(self, machine: str) -> tuple[Link, ...]:
        if machine == CLIENT:
            return (Link(machine, PUBLIC, 2),)
        if machine == ROUTER:
            return (Link(machine, PUBLIC, ROUTER_HOST), Link(machine, PRIVATE, ROUTER_HOST))
        number = int(machine.rpartition("-")[2])
        private = PUBLIC if self.one_interface else PRIVATE
        if is_node_alone(machine):
            return (Link(machine, private, 20 + number),)
        networks = dict.fromkeys((PUBLIC, private))
        return tuple(Link(machine, network, 10 + number) for network in networks)

    def device(self, link: Link) -> str:
        """Of what kind this interface is."""
        if not (is_lb(link.machine) and self.devices):
            return "veth"
        number = min(self.lb_names.index(link.machine), len(self.devices) - 1)
        public, private = self.devices[number].split("/")
        return public if link.network is PUBLIC else private

    @property
    def snat_addresses(self) -> tuple[str, ...]:
        """Those of the VIP: addresses of the network that the nodes are on."""
        if self.one_interface:
            return tuple(PUBLIC.address(host) for host in range(101, 105))
        return SNAT_ADDRESSES

    def vip(self, lb: str) -> str:
        """What clients of this LB use."""
        return VIP if self.floating else self.links(lb)[0].address

    def api_port(self, lb: str) -> int:
        return FIRST_API_PORT + self.lb_names.index(lb)


def is_lb(machine: str) -> bool:
    return machine.startswith("lb-")


def is_node_alone(machine: str) -> bool:
    """Whether it is a node and no LB."""
    return machine.startswith("node-")


def namespace(machine: str) -> str:
    return f"gale-{machine}"


def enter(machine: str) -> list[str]:
    """The words before a command that is to run on a machine of the lab.

    Not `ip netns exec`, which mounts a fresh /sys over everything mounted below it.
    """
    return ["nsenter", f"--net={NETNS_DIR / namespace(machine)}", "--"]


def home(machine: str) -> Path:
    """The directory that holds all files of one machine."""
    return ROOT_DIR / machine


def keys(machine: str) -> Path:
    """Where its keys are, if there are any."""
    return KEYS_DIR / machine


def supervisor_conf(machine: str) -> Path:
    return home(machine) / "supervisord.conf"


def supervised(machine: str) -> bool:
    return is_lb(machine) or is_node_alone(machine)


def environment(machine: str) -> dict[str, str]:
    """What a process on this machine finds in its environment beyond the host's own."""
    programs = Path(sys.executable).parent
    variables = {"PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if supervised(machine):
        directory = home(machine)
        kind = "lb" if is_lb(machine) else "node"
        variables |= {
            "GALE_CONFIG": str(directory / f"{kind}.toml"),
            "GALE_RUN_DIR": str(directory / "run"),
            "GALE_STATE_DIR": str(directory / "state"),
            "GALE_BPF_DIR": str(directory / "bpf"),
        }
    return variables
