"""What health has decided of its nodes and what it checks, put together again. Pure.

The bus keeps them apart, since one changes rarely and is read by all, and the other changes with
every beat and is read here. Whoever looks from outside sees one state, `state.nodes.`, and one
node. Ages and remainders in it are right at the moment for which it is put together.
"""

from __future__ import annotations

from dataclasses import replace

from bus.states import (
    LocalChecks,
    LocalView,
    NodeChecks,
    NodeObservation,
    NodesState,
    NodeView,
    ServiceState,
)


def nodes_state(
    view: LocalView, checks: LocalChecks | None, view_age_ms: int, checks_age_ms: int
) -> NodesState:
    """The public state; the ages are those of the two contents."""
    found = checks.by_node() if checks is not None else {}
    required = checks.required if checks is not None else 0
    return NodesState(
        version=view.version,
        nodes=tuple(
            observation(node, found.get(node.id), required, view_age_ms, checks_age_ms)
            for node in view.nodes
        ),
        rejected=checks.rejected if checks is not None else {},
        waiting_for=view.waiting_for,
    )


def observation(
    node: NodeView, checks: NodeChecks | None, required: int, view_age_ms: int, checks_age_ms: int
) -> NodeObservation:
    """One node; one that is newer than the last checks has none yet, and was heard just now."""
    return NodeObservation(
        id=node.id,
        name=node.name,
        address=node.address,
        state=node.state,
        reason=node.reason,
        weight=node.weight,
        services=node.services,
        fails=node.fails,
        banned_for_ms=max(0, node.banned_for_ms - view_age_ms),
        observed_ms=checks.observed_ms + checks_age_ms if checks is not None else view_age_ms,
        checks_passed=checks.passed if checks is not None else 0,
        checks_required=required,
        checks_good_total=checks.good_total if checks is not None else 0,
        checks_bad_total=checks.bad_total if checks is not None else 0,
        load=checks.load if checks is not None else 0.0,
        silent=node.silent,
        apart=tuple(_later(each, view_age_ms) for each in node.apart) if node.apart else (),
        backup=node.backup,
    )


def _later(state: ServiceState, age_ms: int) -> ServiceState:
    if not state.banned_for_ms:
        return state
    return replace(state, banned_for_ms=max(0, state.banned_for_ms - age_ms))
