"""Real TCP in bulk through the dataplane process: what merges and unfinished checksums become.

What single packets of each kind become stands in tests/bpf/test_tap.py; here is that they are what
a kernel on either side takes.
"""

from __future__ import annotations

from tests.dataplane import machines

LINE = b"x" * 60_000 + b"\n"
FRAME = 1514


def test_checksums_are_finished_where_the_device_does_nothing() -> None:
    """Replies come with half their checksum, and leave by a device that finishes none."""
    with machines.site() as lb:
        lb.inside(lb.lb, "ethtool", "-K", "pub0", "tx", "off")
        lb.bring_up()
        flow = lb.connect()
        for _ in range(5):
            assert flow.echo(LINE)


def test_merged_packets_are_counted_as_on_the_wire() -> None:
    with machines.site() as lb:
        lb.bring_up()
        flow = lb.connect()
        for _ in range(20):
            assert flow.echo(LINE)
        sent = 20 * len(LINE)
        told = lb.until_counted(lambda told: sum(s.bytes_out for s in told.seats) > sent)
        size = sum(seat.bytes_out for seat in told.seats)
        assert size / sum(seat.packets_out for seat in told.seats) <= FRAME


def test_merged_packets_too_long_for_the_client_are_answered() -> None:
    """The client asks for longer segments than the LB's link to it carries, and sends shorter ones:
    only an answer to the node makes the download fit.
    """
    with machines.site() as lb:
        machines.run("ip", "-n", lb.lb, "link", "set", "pub0", "mtu", "1480")
        way = f"10.60.0.0/24 dev pub0 proto kernel scope link src {machines.CLIENT}"
        limits = ("mtu", "lock", "1400", "advmss", "1460")
        machines.run("ip", "-n", lb.client, "route", "replace", *way.split(), *limits)
        lb.bring_up()
        flow = lb.connect()
        assert flow.echo(LINE)
        told = lb.until_counted(lambda told: told.verdicts.get("tc_private.l4_reply", 0) > 3)
        assert told.verdicts.get("tc_private.too_big_answered", 0) >= 1, told.verdicts
