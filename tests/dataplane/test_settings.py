"""What the programs are told for the LB as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bpf.clock import TICK_MS
from conf import LbConfig, load_lb
from services.dataplane.flows.record import FlowState
from services.dataplane.machine import Interface, Machine
from services.dataplane.settings import settings, timeouts
from services.dataplane.words import address_word

PUBLIC = Interface("pub0", 7, bytes(range(6)), 1500, "10.80.0.10")
PRIVATE = Interface("priv0", 9, bytes(6), 9000, "10.81.0.10")
MACHINE = Machine(PUBLIC, PRIVATE)
Load = Callable[[str], LbConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(dataplane: str) -> LbConfig:
        path = tmp_path / "lb.toml"
        head = '[local]\nnet_interface_public = "pub0"\nnet_interface_private = "priv0"\n'
        path.write_text(f"{head}[dataplane]\n{dataplane}\n")
        return load_lb(path)

    return loaded


def seconds(config: LbConfig) -> dict[FlowState, float]:
    ticks = timeouts(config, 16)
    assert len(ticks) == 16
    assert set(ticks[len(FlowState) :]) == {ticks[FlowState.FREE]} == {0}
    return {state: ticks[state] * TICK_MS / 1000 for state in FlowState}


def test_timeouts_are_those_of_the_standards_never_less(load: Load) -> None:
    told = seconds(load(""))
    expected_s = {
        FlowState.FREE: 0,
        FlowState.TCP_OPENING: 240,
        FlowState.TCP_ANSWERED: 240,
        FlowState.TCP_ESTABLISHED: 7440,
        FlowState.TCP_CLOSING: 240,
        FlowState.TCP_TIME_WAIT: 60,
        FlowState.TCP_RESET: 10,
        FlowState.UDP_ASKED: 30,
        FlowState.UDP_ANSWERED: 30,
        FlowState.UDP_ESTABLISHED: 120,
        FlowState.UDP_FRESH: 120,
    }
    assert told == pytest.approx(expected_s, abs=0.07)
    assert all(told[state] >= expected_s[state] for state in FlowState)


def test_the_file_may_say_otherwise(load: Load) -> None:
    keys = {
        "tcp_established": (FlowState.TCP_ESTABLISHED,),
        "tcp_closing": (FlowState.TCP_CLOSING,),
        "tcp_time_wait": (FlowState.TCP_TIME_WAIT,),
        "udp": (FlowState.UDP_ESTABLISHED, FlowState.UDP_FRESH),
        "udp_one_sided": (FlowState.UDP_ASKED, FlowState.UDP_ANSWERED),
    }
    usual = seconds(load(""))
    for key, states in keys.items():
        told = seconds(load(f'{key} = "77s"'))
        assert told == pytest.approx(usual | dict.fromkeys(states, 77), abs=0.07)


def test_all_else(load: Load) -> None:
    config = load('new_flows_per_second = 5\nouter_source_prefix = "100.64.0.0/16"')
    told = settings(
        config,
        MACHINE,
        3,
        4,
        chained=True,
        states=16,
        by_tc=lambda index: index == 9,
        notes=True,
    )
    assert told.notes == 1
    assert (told.hash_seed, told.flow_seed, told.chained) == (3, 4, 1)
    assert (told.public_ifindex, told.private_ifindex) == (7, 9)
    assert (told.public_by_tc, told.private_by_tc) == (0, 1)
    assert (told.public_mac, told.public_mtu) == (PUBLIC.mac, 1500)
    assert told.outer_prefix == address_word("100.64.0.0")
    assert (told.new_flows_per_second, told.new_flows_per_second_per_source) == (5, 0)
    assert told.answers_per_second == 1000
    wide = replace(MACHINE, public=replace(PUBLIC, mtu=100_000))
    told = settings(
        load(""),
        wide,
        3,
        4,
        chained=False,
        states=16,
        by_tc=lambda index: index == 7,
        notes=False,
    )
    assert told.notes == 0
    assert (told.public_by_tc, told.private_by_tc) == (1, 0)
    assert (told.public_mtu, told.outer_prefix, told.chained) == (65_535, 0, 0)
