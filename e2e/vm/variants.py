"""The programs that a machine may load, in each way they are built."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bpf.chain import NO_TABLE, FlowTables
from bpf.compiler import SOURCE_DIR
from conf import load_lb
from e2e.lab.files import lb_config, toml_text
from e2e.lab.plan import Plan
from services.dataplane.programs import ProgramPlan

Program = tuple[str, str, Literal["xdp", "tc"]]
"""Source, function, and the kind of hook that it is for."""
PUBLIC: tuple[Program, ...] = (
    ("xdp.c", "gale_xdp_public", "xdp"),
    ("tc.c", "gale_tc_public", "tc"),
    ("tc.c", "gale_tc_own", "tc"),
)
PRIVATE: tuple[Program, ...] = (
    ("xdp.c", "gale_xdp_reply", "xdp"),
    ("tc.c", "gale_tc_private", "tc"),
)
TOLD: tuple[Program, ...] = (("replica.c", "gale_replica", "tc"),)
"""What enters the flows that other LBs tell of."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Sources that are compiled together, and the programs of them that are loaded."""

    name: str
    programs: tuple[Program, ...]
    defines: dict[str, str | int] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source for source, _, _ in self.programs))

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(SOURCE_DIR / source for source in self.sources)


def _lab_defines() -> dict[str, str | int]:
    """Those of the labs' LB, so that it finds its programs in the cache."""
    lab = Plan()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "lb.toml"
        place.write_text(toml_text(lb_config(lab, lab.lb_names[0], {})))
        plan = ProgramPlan.from_config(load_lb(place))
    return plan.defines | FlowTables(plan.flow_buckets, NO_TABLE, plan.flow_buckets).defines


def variants() -> tuple[Variant, ...]:
    """All of them."""
    common = _lab_defines()
    return (
        Variant("two interfaces", PUBLIC + PRIVATE + TOLD, common),
        Variant("one interface", PUBLIC, common | {"GALE_ONE_ARM": 1}),
        Variant("generic XDP", PUBLIC + PRIVATE, common | {"GALE_GENERIC_XDP": 1}),
        Variant(
            "a flow table before another",
            PUBLIC + PRIVATE + TOLD,
            common | {"OLD_FLOW_BUCKETS": common["FLOW_BUCKETS"]},
        ),
        Variant("gale trace", PUBLIC + PRIVATE, common | {"GALE_TRACE": 1}),
        Variant("node, by TC", (("unwrap.c", "gale_unwrap", "tc"),)),
        Variant("node, by XDP", (("unwrap.c", "gale_unwrap", "xdp"),), {"GALE_XDP": 1}),
    )
