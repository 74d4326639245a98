"""The scenes: one rig per process, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.harness import Rig, rig
from tests.bpf.scene import Scene


@pytest.fixture(scope="session")
def two_arms() -> Iterator[Rig]:
    with rig() as programs:
        yield programs


@pytest.fixture(scope="session")
def one_arm_programs() -> Iterator[Rig]:
    with rig(GALE_ONE_ARM=1) as programs:
        yield programs


@pytest.fixture
def scene(two_arms: Rig) -> Scene:
    return Scene(two_arms)


@pytest.fixture
def one_arm(one_arm_programs: Rig) -> Scene:
    """Public and private are the same interface."""
    return Scene(one_arm_programs)
