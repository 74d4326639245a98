"""What the agent's core says, the registry must take: both, as they are, on one virtual clock."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.syscall import VerifierError
from bus.messages import NodeState
from tests.node.pair import PLAN, Pair

DOWN, UP = NodeState.DOWN, NodeState.UP
VERIFIER = "\n".join(
    (
        "gale_unwrap: [Errno 13] bpf(PROG_LOAD): Permission denied",
        "0: (bf) r6 = r1",
        "\tR7 invalid mem access 'scalar'",
    )
)


# ----------------------------------------------------------------- reasons


def test_a_reason_of_many_lines_arrives_as_one() -> None:
    pair = Pair().bring_up()
    pair.agent.prepared(True, f"unwrapper: {VerifierError(VERIFIER)}", pair.now_ms)
    pair.run(20_000)
    assert pair.node.state is DOWN
    assert pair.node.reason.startswith("not serving: not prepared: unwrapper: gale_unwrap: [Errno")
    assert "Permission denied 0: (bf) r6 = r1 R7 invalid" in pair.node.reason
    assert (pair.rejected, pair.refusals) == ({}, [])
    # The agent's own doing: an LB may be older, and not forgive it.
    assert pair.agent.status(pair.now_ms)["reason"].isprintable()


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=300))
def test_whatever_a_check_gives_as_its_reason_is_no_misbehaviour(reason: str) -> None:
    pair = Pair().bring_up()
    pair.agent.checked(PLAN, False, reason, pair.now_ms)
    pair.run(6_000)
    assert (pair.node.state, pair.rejected) == (DOWN, {})
    assert pair.node.reason.isprintable()
    pair.agent.checked(PLAN, True, "", pair.now_ms)
    pair.run(1_000)
    assert pair.node.state is UP
