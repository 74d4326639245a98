"""Each process with its user and no more rights than it needs, each file with its owner: as
conf/rights.toml says."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from e2e.hosts import Hosts, pid_of, wait_for
from e2e.lab.plan import CHECKOUT_DIR

RIGHTS: dict[str, Any] = tomllib.loads((CHECKOUT_DIR / "conf" / "rights.toml").read_text())
CAPABILITY_NUMBERS = {
    "net_admin": 12,
    "net_raw": 13,
    "ipc_lock": 14,
    "sys_nice": 23,
    "perfmon": 38,
    "bpf": 39,
}
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def user_id(hosts: Hosts, who: str, name: str) -> int:
    """As the machine's own processes know it."""
    pid = hosts.supervisord_pid(who)
    passwd = hosts.run(who, "cat", f"/proc/{pid}/root/etc/passwd").stdout
    return next(
        int(line.split(":")[2]) for line in passwd.splitlines() if line.startswith(f"{name}:")
    )


def status(hosts: Hosts, who: str, process: str) -> dict[str, str]:
    pid = pid_of(hosts, who, process)
    lines = hosts.run(who, "cat", f"/proc/{pid}/status").stdout.splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("process", RIGHTS["processes"])
def test_a_process_has_the_tables_rights(hosts: Hosts, process: str) -> None:
    who = hosts.nodes[0] if process == "agent" else hosts.lbs[0]
    group = "gale-node" if process == "agent" else "gale"
    rights = RIGHTS["processes"][process]
    expected = sum(1 << CAPABILITY_NUMBERS[name] for name in rights["capabilities"])

    def settled() -> dict[str, str] | None:
        # Between supervisord's fork and the last exec it is still root's shell.
        seen = status(hosts, who, f"{group}:{process}")
        return seen if seen["NoNewPrivs"] == "1" else None

    seen = wait_for(settled, f"{process} without new privileges")
    assert {seen["Uid"]} == {"\t".join([str(user_id(hosts, who, rights["user"]))] * 4)}
    assert {name: int(seen[name], 16) for name in SETS} == dict.fromkeys(SETS, expected)


@pytest.mark.parametrize("path", [each["path"] for each in RIGHTS["paths"]])
def test_a_path_belongs_to_whom_the_table_says(hosts: Hosts, lb: str, path: str) -> None:
    (expected,) = [each for each in RIGHTS["paths"] if each["path"] == path]
    place = path
    for name, value in hosts.environment(lb).items():
        place = place.replace(f"{{{name}}}", value)
    inside = ["nsenter", f"--target={hosts.supervisord_pid(lb)}", "--mount", "--"]
    done = hosts.run(lb, *inside, "stat", "--format=%U %G %a", place)
    owner, group, mode = done.stdout.split()
    assert (owner, group, mode.zfill(4)) == (expected["owner"], expected["group"], expected["mode"])
