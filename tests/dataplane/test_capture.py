"""The filter of `gale capture`, as it is typed."""

from __future__ import annotations

import pytest

from bpf.passage import Part, Side, Term
from services.dataplane.capture import WrongFilter, read_filter
from services.dataplane.counters import hooks, reasons
from services.dataplane.trace import kind_of

NAMES, HOOKS = list(reasons()), hooks()


def test_nothing_means_everything() -> None:
    wanted = read_filter([], NAMES, HOOKS)
    assert wanted.terms == ()
    assert wanted.reasons == (1 << len(NAMES)) - 1
    assert wanted.hooks == (1 << len(HOOKS)) - 1


def test_conditions_in_one_argument_or_many() -> None:
    words = "udp and src net 192.0.2.77/28 and dst port 53"
    wanted = read_filter([words], NAMES, HOOKS)
    assert wanted == read_filter(words.split(), NAMES, HOOKS)
    network = Term(
        Part.ADDRESS,
        address=bytes([192, 0, 2, 64]),
        mask=bytes([255, 255, 255, 240]),
        sides=Side.SOURCE,
    )
    port = Term(Part.PORT, 53, sides=Side.DESTINATION)
    assert wanted.terms == (Term(Part.PROTOCOL, 17), network, port)


def test_verdicts_and_reasons_are_alternatives() -> None:
    wanted = read_filter(["drop", "l4_reply", "tc_private", "xdp_public"], NAMES, HOOKS)
    chosen = {name for place, name in enumerate(NAMES) if wanted.reasons >> place & 1}
    drops = {name for name in NAMES if kind_of(name, NAMES) == "drop"}
    assert chosen == drops | {"l4_reply"}
    assert wanted.hooks == 1 << HOOKS.index("tc_private") | 1 << HOOKS.index("xdp_public")


def test_a_reason_or_hook_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(WrongFilter) as raised:
        read_filter(["drop_no_prot"], NAMES, HOOKS)
    said = str(raised.value)
    assert f"a hook ({', '.join(HOOKS)})" in said
    assert said.endswith("?")
    assert "drop_no_port" in said.partition("did you mean ")[2]
    with pytest.raises(WrongFilter) as raised:
        read_filter(["qqqqqqqq"], NAMES, HOOKS)
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("port 0", "port '0', expected 1 to 65535"),
        ("port 65536", "port '65536'"),
        ("dst port", "port '', expected 1 to 65535"),
        ("src", "'src', expected tcp"),
        ("src tcp", "'tcp', expected tcp, udp"),
        ("host nowhere", "host 'nowhere', expected an IPv4 address"),
        ("host 10.0.0.0/8", "host '10.0.0.0/8', expected an IPv4 address; net takes"),
        ("net 10.0.0.0/33", "net '10.0.0.0/33', expected an IPv4 ADDRESS/BITS"),
        ("not tcp", "'not', expected tcp"),
        (" ".join(["tcp"] * 9), "9 conditions"),
    ],
)
def test_what_is_no_filter_says_what_was_expected(words: str, expected: str) -> None:
    with pytest.raises(WrongFilter) as raised:
        read_filter(words.split(), NAMES, HOOKS)
    assert str(raised.value).startswith(f"filter: {expected}")
