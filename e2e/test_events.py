"""The subscriber of docs/events.md, exactly as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from e2e.hosts import Hosts, node_states, send_signal, wait_for
from e2e.traffic import lines_of

DOCUMENT = Path(__file__).parents[1] / "docs" / "events.md"
LONGEST_SCRIPT_LINES = 14


def documented_script() -> str:
    """The first Python block of the page that speaks ZeroMQ."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    script: str = next(block for block in blocks if "zmq.SUB" in block)
    return script


def test_the_documented_script_prints_a_node_going_down(hosts: Hosts, lb: str) -> None:
    script = documented_script()
    assert len(script.splitlines()) <= LONGEST_SCRIPT_LINES
    victim = hosts.nodes[0]
    subscriber = hosts.start(lb, "env", "PYTHONUNBUFFERED=1", "python3", "-c", script)
    printed = lines_of(subscriber)
    try:
        send_signal(hosts, victim, "server:nginx", "KILL")
        wait_for(
            lambda: any(victim in line for line in list(printed)),
            f"the script to print that {victim} went down; it printed {printed}",
        )
    finally:
        subscriber.kill()
        subscriber.wait()
        hosts.supervisorctl(victim, "start", "server:nginx")
    wait_for(lambda: node_states(hosts, lb)[victim] == "up", f"{victim} up again")
