"""The scenes: one rig of each kind per process, of its own maps, emptied for each test."""

from __future__ import annotations

import pytest

from tests.bpf.harness import SMALL_TABLES, Rig
from tests.bpf.scene import Scene


@pytest.fixture(scope="session")
def two_arms() -> Scene:
    return Scene(Rig(dict(SMALL_TABLES)))


@pytest.fixture(scope="session")
def both_on_one_arm() -> Scene:
    return Scene(Rig({**SMALL_TABLES, "GALE_ONE_ARM": 1}))


@pytest.fixture
def scene(two_arms: Scene) -> Scene:
    two_arms.forget()
    return two_arms


@pytest.fixture
def one_arm(both_on_one_arm: Scene) -> Scene:
    """Public and private are the same interface."""
    both_on_one_arm.forget()
    return both_on_one_arm
