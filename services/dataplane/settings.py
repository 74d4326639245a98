"""What the programs are told for this LB as a whole: `Settings`, of file, machine and table.

Timeouts are idle times. TCP that is not established gets four minutes (RFC 5382, REQ-5), whatever
the file says of the rest; a flow that was reset is kept ten seconds, for stray repetitions of its
last segments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpf.clock import ticks_of_ms
from conf import LbConfig
from services.dataplane.flows.record import FlowState
from services.dataplane.kernel import Settings
from services.dataplane.machine import Machine
from services.dataplane.nexthop import LONGEST_PACKET_BYTES
from services.dataplane.words import address_word

ANSWERS_PER_SECOND = 1_000
"""RSTs and unreachables that strangers may provoke."""
OPENING_MS = 240_000
RESET_MS = 10_000


def of_machine(present: Machine, by_tc: Callable[[int], bool]) -> dict[str, Any]:
    """What of the settings is the machine's. `by_tc`: whether TC must send to this ifindex."""
    return {
        "public_ifindex": present.public.ifindex,
        "private_ifindex": present.private.ifindex,
        "public_mac": present.public.mac,
        "public_mtu": min(present.public.mtu, LONGEST_PACKET_BYTES),
        "private_mac": present.private.mac,
        "public_address": address_word(present.public.address),
        "private_address": address_word(present.private.address),
        "public_by_tc": int(by_tc(present.public.ifindex)),
        "private_by_tc": int(by_tc(present.private.ifindex)),
    }


def settings(
    config: LbConfig,
    present: Machine,
    hash_seed: int,
    flow_seed: int,
    *,
    chained: bool,
    states: int,
    by_tc: Callable[[int], bool],
    notes: bool,
) -> Settings:
    """`states`: how many timeouts the programs keep. `by_tc`: as in `of_machine`. `notes`: whether
    anybody reads what becomes of flows.
    """
    limits = config.dataplane
    return Settings(
        hash_seed=hash_seed,
        flow_seed=flow_seed,
        outer_prefix=address_word((limits.outer_source_prefix or "").removesuffix("/16")),
        chained=int(chained),
        new_flows_per_second=limits.new_flows_per_second,
        new_flows_per_second_per_source=limits.new_flows_per_second_per_source,
        answers_per_second=ANSWERS_PER_SECOND,
        notes=int(notes),
        timeout=timeouts(config, states),
        **of_machine(present, by_tc),
    )


def timeouts(config: LbConfig, states: int) -> tuple[int, ...]:
    """Ticks by state; 0 for what is no state."""
    limits = config.dataplane
    by_state_ms = {
        FlowState.TCP_OPENING: OPENING_MS,
        FlowState.TCP_ANSWERED: OPENING_MS,
        FlowState.TCP_ESTABLISHED: limits.tcp_established_ms,
        FlowState.TCP_CLOSING: limits.tcp_closing_ms,
        FlowState.TCP_TIME_WAIT: limits.tcp_time_wait_ms,
        FlowState.TCP_RESET: RESET_MS,
        FlowState.UDP_ASKED: limits.udp_one_sided_ms,
        FlowState.UDP_ANSWERED: limits.udp_one_sided_ms,
        FlowState.UDP_ESTABLISHED: limits.udp_ms,
        FlowState.UDP_FRESH: limits.udp_ms,
    }
    ticks = dict.fromkeys(range(states), 0)
    ticks |= {state.value: ticks_of_ms(ms) for state, ms in by_state_ms.items()}
    return tuple(ticks.values())
