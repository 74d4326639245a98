"""Where Gale's files are: the defaults of a production machine, moved as a whole by four variables.

`GALE_CONFIG` is the file itself (an LB's or a node's; each process reads one of them, and where a
machine is both, the other's stands beside it),
`GALE_RUN_DIR` holds sockets, `GALE_STATE_DIR` what must survive a reboot, and `GALE_BPF_DIR` is
the versioned directory of pins in a bpffs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LB_FILE, NODE_FILE = "lb.toml", "node.toml"


@dataclass(frozen=True, slots=True)
class Paths:
    """Every path a process needs before it has read its configuration."""

    lb_config: Path = Path("/etc/gale/lb.toml")
    node_config: Path = Path("/etc/gale/node.toml")
    run_dir: Path = Path("/run/gale")
    state_dir: Path = Path("/var/lib/gale")
    bpf_dir: Path = Path("/sys/fs/bpf/gale/v1")

    @property
    def lb_beside(self) -> Path | None:
        """The LB's file of the machine whose node's file is ours; None: it is a node alone."""
        return self._beside(self.lb_config, NODE_FILE, LB_FILE)

    @property
    def node_beside(self) -> Path | None:
        """The node's file of the machine whose LB's file is ours; None: it is an LB alone."""
        return self._beside(self.node_config, LB_FILE, NODE_FILE)

    def _beside(self, other: Path, own_name: str, other_name: str) -> Path | None:
        if self.lb_config == self.node_config:
            if other.name != own_name:
                return None
            other = other.with_name(other_name)
        return other if other.exists() else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Paths:
        variables = {
            "lb_config": "GALE_CONFIG",
            "node_config": "GALE_CONFIG",
            "run_dir": "GALE_RUN_DIR",
            "state_dir": "GALE_STATE_DIR",
            "bpf_dir": "GALE_BPF_DIR",
        }
        given = {
            field: Path(environment[variable])
            for field, variable in variables.items()
            if environment.get(variable)
        }
        return cls(**given)
