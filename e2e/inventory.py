"""The machines of an Ansible inventory, over ssh: the suite's other implementation of `Hosts`.

What the playbooks deployed is asked and treated as an administrator would: each command goes over
ssh and through sudo, without a password. One connection to a machine is opened at the first command
and shared by all that follow. The client is this machine, so it must reach the VIP, and the cluster
must have one (`gale_virtual_ip`). No cable of these machines can be cut from here, so only tests
that are marked `anywhere` run against them; they ask for HTTP at the VIP's port 8080, and stop,
kill and start processes.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

CLIENT = "client"
API = "http://127.0.0.1:5555"
DIRECTORIES = {
    "GALE_CONFIG": "/etc/gale/lb.toml",
    "GALE_RUN_DIR": "/run/gale",
    "GALE_STATE_DIR": "/var/lib/gale",
    "GALE_BPF_DIR": "/sys/fs/bpf/gale/v1",
}


class InventoryError(Exception):
    """The inventory, or what runs on its machines, is none that the suite can be run against."""


class InventoryHosts:
    """The machines of the groups `gale_lbs` and `gale_nodes`, by their names there."""

    def __init__(self, inventory: Path, controls: Path) -> None:
        """`controls`: a directory for the shared connections' sockets."""
        program = Path(sys.executable).with_name("ansible-inventory")
        words = [str(program), "-i", str(inventory), "--list"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InventoryError(done.stderr.strip())
        listed = json.loads(done.stdout)
        self._variables: dict[str, dict[str, Any]] = listed["_meta"]["hostvars"]
        self._controls = controls
        self._vip = ""
        self.lbs = tuple(listed.get("gale_lbs", {}).get("hosts", ()))
        self.nodes = tuple(listed.get("gale_nodes", {}).get("hosts", ()))
        self.client = CLIENT
        if not (self.lbs and self.nodes):
            raise InventoryError(f"{inventory} names no gale_lbs, or no gale_nodes")

    def vip(self) -> str:
        """Asked once: it stays the same, also while the LB that was asked does not run."""
        if not self._vip:
            vips = self.api(self.lbs[0], "/v1/quorum")["vips"]
            if not vips:
                raise InventoryError(f"{self.lbs[0]} has no virtual IP: set gale_virtual_ip")
            self._vip = str(vips[0]["address"])
        return self._vip

    def environment(self, who: str) -> dict[str, str]:
        moved = {} if who in self.lbs else {"GALE_CONFIG": "/etc/gale/node.toml"}
        return DIRECTORIES | moved

    def run(
        self, who: str, *words: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            self._words(who, words), capture_output=True, text=True, check=False, **given
        )

    def start(self, who: str, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._words(who, words), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def supervisorctl(self, who: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(who, "supervisorctl", *words)

    def supervisord_pid(self, who: str) -> int:
        return int(self.supervisorctl(who, "pid").stdout)

    def start_supervisord(self, who: str) -> None:
        self.run(who, "systemctl", "restart", "supervisor")

    def api(self, lb: str, path: str) -> Any:
        return json.loads(self._get(lb, path))

    def metrics(self, lb: str, name: str) -> list[Sample]:
        families = text_string_to_metric_families(self._get(lb, "/metrics"))
        return [sample for family in families for sample in family.samples if sample.name == name]

    def _get(self, lb: str, path: str) -> str:
        """Asked there: the API listens on no network that clients reach."""
        done = self.run(lb, "curl", "--silent", "--fail", "--max-time", "5", f"{API}{path}")
        if done.returncode != 0:
            raise OSError(f"{lb}: {path}: curl ended with {done.returncode} {done.stderr}")
        return done.stdout

    def close(self) -> None:
        """End the shared connections."""
        for who in (*self.lbs, *self.nodes):
            words = ["ssh", *self._options(who), "-O", "exit", self._address(who)]
            subprocess.run(words, capture_output=True, check=False)

    # ------------------------------------------------------------------ ssh

    def _words(self, who: str, words: tuple[str, ...]) -> list[str]:
        if who == CLIENT:
            return list(words)
        there = f"sudo --non-interactive -- {shlex.join(words)}"
        return ["ssh", *self._options(who), self._address(who), there]

    def _options(self, who: str) -> list[str]:
        known = self._variables[who]
        options = ["-o", "BatchMode=yes", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
        options += ["-o", f"ControlPath={self._controls}/%C", "-o", "ConnectTimeout=10"]
        options += shlex.split(known.get("ansible_ssh_common_args", ""))
        if "ansible_ssh_private_key_file" in known:
            options += ["-i", str(known["ansible_ssh_private_key_file"])]
        if "ansible_port" in known:
            options += ["-p", str(known["ansible_port"])]
        return options

    def _address(self, who: str) -> str:
        known = self._variables[who]
        user = f"{known['ansible_user']}@" if "ansible_user" in known else ""
        return f"{user}{known.get('ansible_host', who)}"


@contextmanager
def inventory_hosts(inventory: Path) -> Iterator[InventoryHosts]:
    """Its machines, with one connection to each for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="gale-ssh-") as controls:
        machines = InventoryHosts(inventory, Path(controls))
        try:
            yield machines
        finally:
            machines.close()
