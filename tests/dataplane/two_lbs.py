"""Two LBs on one public and one private network, each with the real dataplane process.

The networks are bridges in a namespace of their own. The VIP and its SNAT address are nobody's own:
which LB the client and the node send to is what their neighbour tables say, which the test writes,
as an announcement would.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpf.loader import fill_cache
from bus.states import NodeTable, SnatSlice, TableService, VipOwner
from bus.words import Mode, Protocol
from services.dataplane.programs import ENTERING, SOURCES, ProgramPlan
from tests.bpf.harness import IMAGES, private_bpffs
from tests.dataplane.machines import (
    CLIENT,
    NODE_PORT,
    NODES,
    PATIENCE_S,
    PORT,
    Connection,
    Site,
    in_network,
    run,
    table,
)

VIP, SNAT = "10.60.0.100", "10.61.0.100"
NAMES = ("lb-0", "lb-1")
PUBLIC = {"lb-0": "10.60.0.10", "lb-1": "10.60.0.11"}
PRIVATE = {"lb-0": "10.61.0.10", "lb-1": "10.61.0.11"}
FIRST_PORT = {"lb-0": 20_000, "lb-1": 30_000}
PORTS = 4_096
QUORUM_PORT = 7_100
ENTRIES = 8_192


def config(name: str, cluster: str = "gale", more: str = "") -> str:
    addresses = ", ".join(
        f'{{ ip = "{PRIVATE[lb]}", port = {QUORUM_PORT}, name = "{lb}" }}' for lb in NAMES
    )
    return f"""
[local]
name = "{name}"
net_interface_public = "pub0"
net_interface_private = "priv0"
[dataplane]
conntrack_entries = {ENTRIES}
half_open_entries = {ENTRIES}
{more}
[load_balancer_quorum]
name = "{cluster}"
addresses = [{addresses}]
"""


def agreed(epoch: int = 1, **fields: Any) -> NodeTable:
    """One L4 service on the VIP; each LB has its slice of the SNAT address."""
    values: dict[str, Any] = {
        "services": (TableService("default", VIP, PORT, Protocol.TCP, Mode.L4, NODE_PORT),),
        "vip_owners": (VipOwner(VIP, SNAT, NAMES[0], (SNAT,)),),
        "snat_slices": tuple(SnatSlice(lb, SNAT, FIRST_PORT[lb], PORTS) for lb in NAMES),
    }
    return table(epoch, **values | fields)


class Lb(Site):
    """One of the two; client, node and networks are the pair's."""

    def __init__(self, directory: Path, bpf_dir: Path, name: str) -> None:
        directory.mkdir()
        self.name = name
        self.compare_ms: int | None = None
        """How often it has the others compare their flows with its own; None: as it does."""
        super().__init__(directory, bpf_dir)

    def command(self) -> list[str]:
        whole = super().command()
        if self.compare_ms is None:
            return whole
        program = (
            "from services.dataplane import main, replication;"
            f"replication.COMPARE_MS = {self.compare_ms};"
            "main.main()"
        )
        return [*whole[:-1], sys.executable, "-c", program]

    def write_config(self, text: str = "") -> None:
        super().write_config(text or config(self.name))

    def bring_up_replicating(self) -> subprocess.Popen[bytes]:
        self.publish(agreed())
        process = self.start()
        self.until_ready()
        return process

    def total(self) -> int:
        return int(self.ask("flows")["total"])


class TwoLbs:
    """A switch, a client, a node, and the LBs A and B."""

    def __init__(self, directory: Path, bpf_dirs: tuple[Path, Path]) -> None:
        self.a, self.b = (
            Lb(directory / name, bpf_dir, name)
            for name, bpf_dir in zip(NAMES, bpf_dirs, strict=True)
        )
        self.lbs = (self.a, self.b)
        self.b.client, self.b.node = self.a.client, self.a.node
        self.switch = self.a.lb.replace("-lb-", "-sw-")

    def build(self) -> None:
        client, node = self.a.client, self.a.node
        for name in (self.switch, client, node, self.a.lb, self.b.lb):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for bridge in ("public", "private"):
            run("ip", "-n", self.switch, "link", "add", bridge, "type", "bridge", "stp_state", "0")
            run("ip", "-n", self.switch, "link", "set", bridge, "up")
        self._plug(client, "pub0", "public", CLIENT)
        self._plug(node, "priv0", "private", *NODES)
        for lb in self.lbs:
            self.a.inside(lb.lb, "sysctl", "-qw", "net.ipv4.ip_forward=0")
            self._plug(lb.lb, "pub0", "public", PUBLIC[lb.name])
            self._plug(lb.lb, "priv0", "private", PRIVATE[lb.name])
        for address in NODES:
            self.a.serve(address)

    def _plug(self, machine: str, name: str, bridge: str, *addresses: str) -> None:
        port = f"{name[:3]}-{machine.removeprefix('gale-dp-')}"[:15]
        run(
            *("ip", "-n", machine, "link", "add", name, "type", "veth"),
            *("peer", "name", port, "netns", self.switch),
        )
        run("ip", "-n", self.switch, "link", "set", port, "master", bridge, "up")
        for address in addresses:
            run("ip", "-n", machine, "address", "add", f"{address}/24", "dev", name)
        run("ip", "-n", machine, "link", "set", name, "up")
        self.a.inside(machine, "ethtool", "-K", name, "gro", "on")
        self.a.inside(self.switch, "ethtool", "-K", port, "gro", "on")
        if name == "pub0":
            self.a.inside(self.switch, "ethtool", "-K", port, "tx", "off")

    def move_to(self, lb: Lb) -> None:
        """From now on the VIP and its SNAT address are with that LB."""
        for machine, address, interface in (
            (self.a.client, VIP, "pub0"),
            (self.a.node, SNAT, "priv0"),
        ):
            mac = _mac(lb.lb, interface)
            neighbour = ("neighbour", "replace", address, "lladdr", mac, "dev", interface)
            run("ip", "-n", machine, *neighbour, "nud", "permanent")

    def die(self, lb: Lb) -> None:
        """The process, and the machine with it: nothing goes through there any more."""
        for process in lb.processes:
            lb.kill(process)
        for interface in ("pub0", "priv0"):
            run("ip", "-n", lb.lb, "link", "set", interface, "down")

    def connect(self) -> Connection:
        with in_network(self.a.client):
            ours = socket.socket()
        self.a.keep(ours)
        ours.settimeout(PATIENCE_S)
        ours.connect((VIP, PORT))
        return Connection(ours)

    def close(self) -> None:
        for lb in self.lbs:
            lb.close()
        subprocess.run(("ip", "netns", "delete", self.switch), check=False, capture_output=True)


def _mac(machine: str, interface: str) -> str:
    shown = run("ip", "-n", machine, "-br", "link", "show", interface)
    return next(word for word in shown.split() if word.count(":") == 5)


@contextlib.contextmanager
def two_lbs() -> Iterator[TwoLbs]:
    plan = ProgramPlan("pub0", "priv0", False, False, ENTRIES, ENTRIES)
    sizes = {"FLOW_BUCKETS": plan.flow_buckets, "OLD_FLOW_BUCKETS": 1}
    fill_cache((*SOURCES, ENTERING), plan.defines | sizes, IMAGES)
    directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    with private_bpffs() as one, private_bpffs() as other:
        made = TwoLbs(directory, (one, other))
        try:
            made.build()
            yield made
        finally:
            made.close()
            shutil.rmtree(directory)
