"""Several machines and what Ansible is told of them.

Ansible comes by address; Gale's own files name the machines by mDNS, as on a real network. What a
playbook changed is read from its recap.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.lab.plan import CHECKOUT_DIR
from e2e.machines.machine import PREFIX, RUN_DIR, WIRE, Machine, call, on_wire, wire
from e2e.machines.root import PORTS, USER
from e2e.traffic import Traffic, load_words

KEY = RUN_DIR / "key"
KEYS = RUN_DIR / "keys"
INVENTORY = RUN_DIR / "hosts.ini"
CONTROLS = str(RUN_DIR / "controls")
"""Connections that Ansible keeps open: by address, which others' machines may have as well."""
VIP = f"{PREFIX}.100"
SNAT = f"{PREFIX}.101"
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.M)
SSH = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q")
Say = Callable[[str], None]


class DeployError(Exception):
    """A playbook failed; the message is the end of what it said."""


@dataclass(frozen=True, slots=True)
class Site:
    """Machines that run: `lbs` and `nodes` may be the same ones."""

    lbs: tuple[Machine, ...]
    nodes: tuple[Machine, ...]

    @property
    def are_both(self) -> bool:
        return self.nodes == self.lbs

    @property
    def ports(self) -> dict[str, int]:
        """The service of each mode; of machines that are both, which have one card, not l2's."""
        return {mode: port for mode, port in PORTS.items() if not self.are_both or mode != "l2"}

    @property
    def machines(self) -> tuple[Machine, ...]:
        return tuple({machine.name: machine for machine in (*self.lbs, *self.nodes)}.values())

    def play(self, playbook: str, packages: Path, *options: str) -> dict[str, int]:
        """Run a playbook; how many things it changed on each machine."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        words = [program, "-i", str(INVENTORY), f"ansible/playbooks/{playbook}.yml"]
        words += ["--extra-vars", f"gale_package_dir={packages} gale_keys_from={KEYS}"]
        words += ["--extra-vars", f"gale_common_keygen={Path(program).with_name('gale')}", *options]
        done = subprocess.run(
            on_wire(*words),
            cwd=CHECKOUT_DIR,
            env=os.environ | {"ANSIBLE_PIPELINING": "1", "ANSIBLE_SSH_CONTROL_PATH_DIR": CONTROLS},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DeployError("\n".join(done.stdout.splitlines()[-30:]) + done.stderr)
        return {name: int(changed) for name, changed, _, _ in RECAP.findall(done.stdout)}


@contextlib.contextmanager
def site(lower: Path, lbs: int, nodes: int, say: Say) -> Iterator[Site]:
    """Machines that are booted, for as long as the block lasts. No nodes: the LBs are nodes too."""
    clear()
    RUN_DIR.mkdir(parents=True, exist_ok=True)
    call("mount", "-t", "tmpfs", "-o", "mode=0755", "gale-machines", RUN_DIR)
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY)
    balancers = tuple(Machine(f"lb-{i}", 10 + i, lower, serves=not nodes) for i in range(lbs))
    serving = tuple(Machine(f"node-{i}", 20 + i, lower, serves=True) for i in range(nodes))
    made = Site(balancers, serving or balancers)
    with wire():
        try:
            for machine in made.machines:
                say(f"booting {machine.name}")
                machine.make(KEY.with_suffix(".pub").read_text())
                machine.boot()
            _write_inventory(made)
            yield made
        finally:
            for machine in made.machines:
                machine.clear()
    clear()


def _write_inventory(made: Site) -> None:
    """The inventory, and what its machines share beside it, as on a real network."""

    def lines(machines: Sequence[Machine]) -> str:
        return "".join(
            f"{each.name} ansible_host={each.address} gale_host={each.name}.local\n"
            for each in machines
        )

    INVENTORY.write_text(
        f"[gale_lbs]\n{lines(made.lbs)}[gale_nodes]\n{lines(made.nodes)}[all:vars]\n"
        f"ansible_user={USER}\nansible_ssh_private_key_file={KEY}\n"
        f"ansible_ssh_common_args={' '.join(SSH)}\n"
    )
    services = "".join(
        f'[[services]]\nname = "{mode}"\nport = {port}\nmode = "{mode}"\n'
        for mode, port in made.ports.items()
    )
    shared = {
        "gale_virtual_ip": VIP,
        "gale_snat_address": SNAT if made.are_both else "",
        "gale_keys": True,
        "gale_lb_interface_public": "eth0",
        "gale_lb_interface_private": "eth0",
        "gale_lb_checks_timeout": "2s",
        "gale_lb_extra": services,
    }
    (RUN_DIR / "group_vars").mkdir()
    (RUN_DIR / "group_vars" / "all.json").write_text(json.dumps(shared))


def clear() -> None:
    """What an earlier one, killed halfway, left mounted."""
    while RUN_DIR.is_mount():
        call("umount", "--lazy", RUN_DIR)
    with contextlib.suppress(OSError):
        RUN_DIR.rmdir()


def fetch(port: int) -> str:
    """What the service on the VIP answers; empty when it does not."""
    words = ["curl", "--silent", "--max-time", "2", f"http://{VIP}:{port}/"]
    done = subprocess.run(on_wire(*words), capture_output=True, text=True, check=False)
    return done.stdout.strip()


def requests(rate: float, port: int) -> Traffic:
    """Requests to the VIP, each on a connection of its own, from now until `stop`."""
    pipe = subprocess.PIPE
    words = on_wire(*load_words(VIP, rate, port))
    return Traffic(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True))


@contextlib.contextmanager
def by_way_of(lb: Machine) -> Iterator[None]:
    """What this machine sends to the VIP goes to this LB, whoever holds it, during the block."""
    entry = [VIP, "dev", "wire"]
    call("ip", "-n", WIRE, "neigh", "replace", *entry, "lladdr", lb.mac, "nud", "permanent")
    try:
        yield
    finally:
        call("ip", "-n", WIRE, "neigh", "delete", *entry)
