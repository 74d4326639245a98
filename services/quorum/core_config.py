"""The configuration as the core reads it.

The file lists LBs by what an operator writes, an address or a host's name with a port: an *entry*.
The agreed table may have another entry for the same LB, so each listed one comes with that.
"""

from __future__ import annotations

from collections.abc import Mapping

from conf import LbConfig
from services.quorum.composition import QuorumConfig
from services.quorum.from_config import table_service
from services.quorum.table import SLOT_REUSE_MS, FloatingVip, TableConfig
from services.quorum.timing import Timing


def core_config(
    config: LbConfig,
    own: str = "",
    others: tuple[str, ...] = (),
    meant: Mapping[str, str] | None = None,
) -> QuorumConfig:
    """The file as the core reads it; `own` and `others` are entries of its list of LBs.

    `meant`: by those entries, what the agreed table has for the same LBs.
    """
    listed = tuple(sorted(listed_in(config)))
    target = tuple((meant or {}).get(entry, "") for entry in listed)
    vips = tuple(FloatingVip(vip.address, vip.snat_addresses) for vip in config.virtual_ips)
    services = tuple(
        table_service(service, config.node_health.min_healthy) for service in config.services
    )
    flows = config.dataplane
    idle_ms = (flows.tcp_established_ms, flows.tcp_closing_ms, flows.tcp_time_wait_ms, flows.udp_ms)
    return QuorumConfig(
        name=config.local.name,
        address=own,
        table=TableConfig(services, vips),
        timing=_timing(config),
        checks_timeout_ms=config.node_health.checks_timeout_ms,
        others=others,
        slot_reuse_ms=max(SLOT_REUSE_MS, flows.udp_one_sided_ms, *idle_ms),
        witness=config.quorum.witness,
        listed=listed,
        target=target,
    )


def _timing(config: LbConfig) -> Timing:
    quorum = config.quorum
    return Timing(
        quorum.heartbeat_ms, quorum.lease_ms, quorum.promise_ms, quorum.election_jitter_ms
    )


def listed_in(config: LbConfig) -> dict[str, tuple[str, int]]:
    """Host and port of each member; none: a quorum of one."""
    addresses = config.quorum.addresses
    return {str(each): (each.host, each.port) for each in addresses} if addresses[1:] else {}


def host_of(entry: str) -> str:
    return entry.rpartition(":")[0]
