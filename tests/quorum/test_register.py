"""One table is agreed on: what is accepted, stored, and counted as committed."""

from __future__ import annotations

from dataclasses import replace

from bus.peer_protocol import Version
from services.quorum.register import Dated, Register
from tests.quorum.rig import table_of


def held(*, term: int, epoch: int) -> Dated:
    return Dated(replace(table_of("lb-0", "lb-1", "lb-2"), term=term, epoch=epoch), 0)


def test_what_a_majority_has_stored_is_committed_once() -> None:
    register = Register(stored=held(term=1, epoch=4))
    assert not register.count(1, 2), "nobody else has it"
    register.held = {"lb-1": Version(1, 3), "lb-2": Version(1, 5)}
    assert not register.count(1, 2), "others have others"
    register.held["lb-1"] = Version(1, 4)
    assert register.count(1, 2)
    assert register.committed_version == Version(1, 4)
    assert not register.count(1, 2), "it is known already"


def test_a_table_of_an_earlier_term_is_not_counted() -> None:
    """A majority may have stored it, and yet somebody with a newer one be elected (Raft, 5.4.2)."""
    register = Register(stored=held(term=1, epoch=4))
    register.held = {"lb-1": Version(1, 4), "lb-2": Version(1, 4)}
    assert not register.count(2, 2)
    register.accept(held(term=2, epoch=5).table, 0)
    register.stored = register.accepted
    register.held = {"lb-1": Version(2, 5)}
    assert register.count(2, 2)


def test_what_is_not_newer_is_not_accepted() -> None:
    register = Register()
    assert register.accept(held(term=2, epoch=4).table, 0)
    for term, epoch in ((2, 4), (2, 3), (1, 9)):
        assert not register.accept(held(term=term, epoch=epoch).table, 0)
    assert register.accept(held(term=3, epoch=1).table, 0)


def test_a_committed_table_is_taken_once_it_is_stored() -> None:
    register = Register(accepted=held(term=1, epoch=4))
    register.learn_committed(Version(1, 4))
    assert register.take_committed() is None
    register.stored = register.accepted
    assert register.take_committed() is register.accepted
    assert register.take_committed() is None
    register.learn_committed(Version(1, 3))
    assert register.committed_version == Version(1, 4)
