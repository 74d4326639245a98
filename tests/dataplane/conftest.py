"""Maps of the real programs, and what reads their counters, for modules without their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bpf.syscall import possible_cpus
from services.dataplane.counters import Counters
from tests.bpf.harness import Rig, rig


@pytest.fixture
def maps() -> Iterator[Rig]:
    with rig() as programs:
        yield programs


@pytest.fixture
def counters(maps: Rig) -> Counters:
    return Counters(maps.tc_object.bpf, possible_cpus())
