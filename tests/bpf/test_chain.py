"""A flow table of another size is chained, and no flow is lost wherever a start dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bpf.chain import Choice, FlowTables, choose, standing
from bpf.loader import compile_program
from bpf.pins import BELONG_TO_FLOWS, PinMismatch, PinnedMaps, map_info, open_pin, pin
from bpf.syscall import MapType, create_map, get_object, map_name, pin_object
from tests.bpf.harness import IMAGES, open_maps, private_bpffs, source_file
from tests.bpf.two_tables import XDP, add_flow, finds

SIZES = (16, 32, 48)


@pytest.fixture
def bpf_dir() -> Iterator[Path]:
    with private_bpffs() as directory:
        yield directory


class Start:
    """One start of the process that owns the maps, up to what the caller calls next."""

    def __init__(
        self, bpf_dir: Path, buckets: int, *, old_is_empty: bool = False, source: str = XDP
    ) -> None:
        self.maps = PinnedMaps(bpf_dir)
        try:
            self.tables = self.maps.flow_tables(buckets, old_is_empty=old_is_empty)
            self.loaded = compile_program(
                str(source_file(source)),
                maps=self.maps,
                defines=self.tables.defines,
                cache_dir=IMAGES,
            )
        except BaseException:
            self.maps.close()
            raise
        settings = self.loaded.bpf[b"settings"]
        settings[0] = settings.Leaf(flow_seed=5, chained=self.tables.chained)
        self.fd = self.loaded.function("gale_xdp_public", "xdp")

    def end(self) -> None:
        self.loaded.close()
        self.maps.close()

    def knows(self, *ports: int) -> bool:
        return all(finds(self.fd, port) for port in ports)


def started(bpf_dir: Path, buckets: int, *ports: int, old_is_empty: bool = False) -> Start:
    """A start that went well, and flows that it has made."""
    start = Start(bpf_dir, buckets, old_is_empty=old_is_empty)
    start.maps.prepare()
    start.maps.commit()
    for port in ports:
        add_flow(start.loaded, port)
    return start


def ran(bpf_dir: Path, buckets: int, *ports: int, old_is_empty: bool = False) -> None:
    started(bpf_dir, buckets, *ports, old_is_empty=old_is_empty).end()


def pinned(bpf_dir: Path) -> dict[str, int]:
    """The flow tables' pins, by the number of buckets."""
    sizes = {}
    for path in (bpf_dir / "maps").iterdir():
        if "flows" in path.name:
            fd = get_object(path)
            sizes[path.name] = map_info(fd).max_entries
    return sizes


# --------------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("pins_here", "old_is_empty", "chosen"),
    [
        ({}, False, Choice(FlowTables(32, 1, 32), None, "old_flows")),
        ({"old_flows": 1}, False, Choice(FlowTables(32, 1, 32), None, "old_flows")),
        ({"flows": 32}, False, Choice(FlowTables(32, 1, 32), "flows", "old_flows")),
        ({"flows": 32, "old_flows": 1}, False, Choice(FlowTables(32, 1, 32), "flows", "old_flows")),
        ({"flows": 32, "old_flows": 1}, True, Choice(FlowTables(32, 1, 32), "flows", "old_flows")),
        ({"flows": 32, "old_flows": 8}, False, Choice(FlowTables(32, 8, 32), "flows", "old_flows")),
        ({"flows": 32, "old_flows": 8}, True, Choice(FlowTables(32, 1, 32), "flows", None)),
        ({"flows": 16, "old_flows": 1}, False, Choice(FlowTables(32, 16, 32), None, "flows")),
        ({"flows": 64, "old_flows": 1}, False, Choice(FlowTables(32, 64, 32), None, "flows")),
        ({"flows": 16, "old_flows": 8}, False, Choice(FlowTables(16, 8, 32), "flows", "old_flows")),
        ({"flows": 16, "old_flows": 8}, True, Choice(FlowTables(32, 16, 32), None, "flows")),
        ({"old_flows": 8}, False, Choice(FlowTables(32, 8, 32), None, "old_flows")),
        # What a start has left that died while it began a chain.
        (
            {"new_flows": 32, "flows": 16, "old_flows": 1},
            False,
            Choice(FlowTables(32, 16, 32), "new_flows", "flows"),
        ),
        (
            {"new_flows": 32, "flows": 16, "old_flows": 8},
            False,
            Choice(FlowTables(32, 16, 32), "new_flows", "flows"),
        ),
        (
            {"new_flows": 32, "old_flows": 16},
            False,
            Choice(FlowTables(32, 16, 32), "new_flows", "old_flows"),
        ),
        (
            {"new_flows": 64, "flows": 16, "old_flows": 1},
            False,
            Choice(FlowTables(64, 16, 32), "new_flows", "flows"),
        ),
        (
            {"new_flows": 64, "flows": 16, "old_flows": 1},
            True,
            Choice(FlowTables(32, 64, 32), None, "new_flows"),
        ),
    ],
)
def test_the_pins_decide_which_table_is_which(
    pins_here: dict[str, int], old_is_empty: bool, chosen: Choice
) -> None:
    choice = choose(pins_here, 32, old_is_empty=old_is_empty)
    assert choice == chosen
    assert choice.begins_chain == (chosen.flows is None and chosen.old_flows != "old_flows")


def test_what_comes_later_is_known_from_the_start() -> None:
    assert FlowTables(32, 1, 32).later() == ()
    assert FlowTables(32, 8, 32).later() == (FlowTables(32, 1, 32),)
    waiting = FlowTables(16, 8, 32)
    assert waiting.later() == (FlowTables(32, 16, 32), FlowTables(32, 1, 32))
    assert (waiting.waits, waiting.chained) == (True, True)
    assert [each.waits for each in waiting.later()] == [False, False]
    assert [each.chained for each in waiting.later()] == [True, False]


def test_without_pins_the_names_are_the_plain_ones() -> None:
    assert standing(()) == ("flows", "old_flows")


# --------------------------------------------------------------------------- chains


def test_a_first_start_has_one_table_of_the_size_wanted(bpf_dir: Path) -> None:
    start = started(bpf_dir, 16, 1)
    assert pinned(bpf_dir) == {"flows": 16, "old_flows": 1}
    assert start.knows(1)
    assert not start.knows(2)
    start.end()
    again = started(bpf_dir, 16)
    assert again.tables == FlowTables(16, 1, 16)
    assert again.knows(1)
    again.end()


@pytest.mark.parametrize("buckets", [32, 16])
def test_another_size_begins_a_chain_and_every_flow_is_found(bpf_dir: Path, buckets: int) -> None:
    before = 48 - buckets
    ran(bpf_dir, before, 1, 2)
    start = started(bpf_dir, buckets, 3)
    assert start.tables == FlowTables(buckets, before, buckets)
    assert start.tables.chained
    assert pinned(bpf_dir) == {"flows": buckets, "old_flows": before}
    assert start.knows(1, 2, 3)
    start.end()
    again = started(bpf_dir, buckets)
    assert again.tables == FlowTables(buckets, before, buckets)
    assert again.knows(1, 2, 3)
    assert again.maps.migrated == ()
    again.end()


def test_nothing_changes_for_the_old_programs_before_the_new_are_attached(bpf_dir: Path) -> None:
    old = started(bpf_dir, 16, 1)
    start = Start(bpf_dir, 32)
    assert pinned(bpf_dir) == {"flows": 16, "old_flows": 1}
    start.maps.prepare()
    assert pinned(bpf_dir) == {"flows": 16, "old_flows": 1, "new_flows": 32}
    # Until they are replaced they make flows in their own table, which the new programs see.
    add_flow(old.loaded, 2)
    assert start.knows(1, 2)
    start.maps.commit()
    assert pinned(bpf_dir) == {"flows": 32, "old_flows": 16}
    old.end()
    start.end()


def test_a_second_change_waits_for_the_first_to_end(bpf_dir: Path) -> None:
    ran(bpf_dir, 16, 1)
    ran(bpf_dir, 32, 2)
    start = started(bpf_dir, 48, 3)
    assert start.tables == FlowTables(32, 16, 48)
    assert start.tables.waits
    assert pinned(bpf_dir) == {"flows": 32, "old_flows": 16}
    assert start.knows(1, 2, 3)
    start.end()
    # Back to the first size is a change like any other.
    again = started(bpf_dir, 16)
    assert again.tables == FlowTables(32, 16, 16)
    assert again.knows(1, 2, 3)
    again.end()


def test_an_empty_table_is_dropped_and_the_change_that_waited_is_made(bpf_dir: Path) -> None:
    ran(bpf_dir, 16, 1)
    ran(bpf_dir, 32, 2)
    present = started(bpf_dir, 48, 3)
    following = started(bpf_dir, 48, 4, old_is_empty=True)
    assert following.tables == FlowTables(48, 32, 48) == present.tables.later()[0]
    assert pinned(bpf_dir) == {"flows": 48, "old_flows": 32}
    assert following.knows(2, 3, 4)
    assert not following.knows(1)
    last = started(bpf_dir, 48, old_is_empty=True)
    assert last.tables == FlowTables(48, 1, 48) == following.tables.later()[0]
    assert pinned(bpf_dir) == {"flows": 48, "old_flows": 1}
    assert last.knows(4)
    assert not last.knows(3)
    for start in (present, following, last):
        start.end()


def test_the_table_before_stays_pinned_until_the_new_programs_are_attached(bpf_dir: Path) -> None:
    ran(bpf_dir, 16, 1)
    ran(bpf_dir, 32, 2)
    following = Start(bpf_dir, 32, old_is_empty=True)
    following.maps.prepare()
    assert pinned(bpf_dir) == {"flows": 32, "old_flows": 16}
    following.end()
    again = started(bpf_dir, 32)
    assert again.knows(1, 2)
    again.end()


def test_programs_of_another_size_than_chosen_are_refused(bpf_dir: Path) -> None:
    ran(bpf_dir, 16)
    maps = PinnedMaps(bpf_dir)
    with pytest.raises(PinMismatch, match="maps/flows: max_entries 16 pinned, 32 declared"):
        compile_program(
            str(source_file(XDP)), maps=maps, defines={"FLOW_BUCKETS": 32}, cache_dir=IMAGES
        )
    maps.close()


# --------------------------------------------------------------------------- death at every step


class Death(BaseException):
    """The process is killed."""


def dies(patch: pytest.MonkeyPatch, at: int) -> None:
    """Before the step number `at` that changes the BPF directory."""
    steps = count()

    def killing(change: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any, **options: Any) -> Any:
            if next(steps) == at:
                raise Death
            return change(*arguments, **options)

        return killed

    patch.setattr("bpf.pins.pin_object", killing(pin_object))
    patch.setattr(Path, "rename", killing(Path.rename))


def until_it_lives(
    patch: pytest.MonkeyPatch,
    before: Callable[[Path], None],
    start: Callable[[Path], Start],
    after: Callable[[Path, bool], None],
) -> int:
    """Let `start` die before each of its steps in turn, of directories that `before` has filled.

    `after` is told whether the programs were attached by then. Returns how many steps there are.
    """
    for at in count():
        with private_bpffs() as bpf_dir:
            before(bpf_dir)
            begun = start(bpf_dir)
            attached = alive = False
            with patch.context() as killing:
                dies(killing, at)
                try:
                    begun.maps.prepare()
                    attached = True
                    add_flow(begun.loaded, 9)
                    begun.maps.commit()
                    alive = True
                except Death:
                    pass
            # Nothing but its pins is left of it.
            begun.end()
            after(bpf_dir, attached)
            if alive:
                return at
    raise AssertionError


def nothing_half_done(bpf_dir: Path) -> None:
    names = {path.name for path in (bpf_dir / "maps").iterdir()}
    assert "new_flows" not in names
    assert not [name for name in names if name.endswith("~")]


@pytest.mark.parametrize("next_size", SIZES)
def test_a_start_that_dies_while_it_begins_a_chain_loses_no_flow(
    monkeypatch: pytest.MonkeyPatch, next_size: int
) -> None:
    def after(bpf_dir: Path, attached: bool) -> None:
        again = started(bpf_dir, next_size, 10)
        assert again.knows(1, 2, 10)
        assert again.knows(9) is attached
        nothing_half_done(bpf_dir)
        again.end()
        third = started(bpf_dir, next_size)
        assert third.knows(1, 2, 10)
        third.end()

    steps = until_it_lives(
        monkeypatch,
        lambda bpf_dir: ran(bpf_dir, 16, 1, 2),
        lambda bpf_dir: Start(bpf_dir, 32),
        after,
    )
    assert steps == 4


def with_an_empty_old_table(bpf_dir: Path) -> None:
    ran(bpf_dir, 16)
    ran(bpf_dir, 32, 2)


def goes_on(next_size: int, bpf_dir: Path, attached: bool) -> None:
    """The flow of before is there, and that of the one that died if it was attached."""
    again = started(bpf_dir, next_size)
    assert again.knows(2)
    assert again.knows(9) is attached
    nothing_half_done(bpf_dir)
    again.end()


@pytest.mark.parametrize("next_size", SIZES)
def test_a_start_that_dies_while_it_drops_an_empty_table_loses_no_flow(
    monkeypatch: pytest.MonkeyPatch, next_size: int
) -> None:
    steps = until_it_lives(
        monkeypatch,
        with_an_empty_old_table,
        lambda bpf_dir: Start(bpf_dir, 32, old_is_empty=True),
        partial(goes_on, next_size),
    )
    assert steps == 2


@pytest.mark.parametrize("next_size", SIZES)
def test_a_start_that_dies_while_one_chain_follows_another_loses_no_flow(
    monkeypatch: pytest.MonkeyPatch, next_size: int
) -> None:
    steps = until_it_lives(
        monkeypatch,
        with_an_empty_old_table,
        lambda bpf_dir: Start(bpf_dir, 48, old_is_empty=True),
        partial(goes_on, next_size),
    )
    assert steps == 4


def test_a_first_start_that_dies_can_be_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def after(bpf_dir: Path, attached: bool) -> None:
        again = started(bpf_dir, 16, 10)
        assert again.knows(10)
        assert again.knows(9) is attached
        nothing_half_done(bpf_dir)
        again.end()

    steps = until_it_lives(monkeypatch, lambda _: None, lambda bpf_dir: Start(bpf_dir, 16), after)
    assert steps > 20


def test_commit_alone_does_all_of_it(bpf_dir: Path) -> None:
    ran(bpf_dir, 16, 1)
    start = Start(bpf_dir, 32)
    start.maps.commit()
    assert pinned(bpf_dir) == {"flows": 32, "old_flows": 16}
    assert start.knows(1)
    start.end()


def test_a_chain_may_follow_one_that_was_begun_and_not_finished(bpf_dir: Path) -> None:
    ran(bpf_dir, 16)
    begun = Start(bpf_dir, 32)
    begun.maps.prepare()
    add_flow(begun.loaded, 9)
    begun.end()
    following = started(bpf_dir, 48, 3, old_is_empty=True)
    assert following.tables == FlowTables(48, 32, 48)
    assert pinned(bpf_dir) == {"flows": 48, "old_flows": 32}
    assert following.knows(3, 9)
    following.end()


# --------------------------------------------------------------------------- what belongs together


@pytest.mark.parametrize("name", BELONG_TO_FLOWS)
def test_flows_without_a_map_that_they_need_are_refused(bpf_dir: Path, name: str) -> None:
    old = started(bpf_dir, 16, 1)
    (bpf_dir / "maps" / name).unlink()
    for buckets in (16, 32):
        if buckets == 32 and name == "old_flows":
            continue  # the pinned table takes its place
        with pytest.raises(PinMismatch) as refusal:
            Start(bpf_dir, buckets)
        (problem,) = refusal.value.problems
        assert problem.startswith(
            f"maps/{name}: not pinned, and the flows in maps/flows mean nothing without it"
        )
        assert "`gale detach`" in problem
    assert old.knows(1)
    old.end()


def test_the_table_before_needs_them_too(bpf_dir: Path) -> None:
    ran(bpf_dir, 16, 1)
    ran(bpf_dir, 32, 2)
    for name in ("flows", "settings", "seats"):
        (bpf_dir / "maps" / name).unlink()
    with pytest.raises(PinMismatch) as refusal:
        Start(bpf_dir, 32)
    assert [problem.split(" mean")[0] for problem in refusal.value.problems] == [
        f"maps/{name}: not pinned, and the flows in maps/old_flows"
        for name in ("settings", "seats")
    ]


def test_without_flows_the_others_are_adopted(bpf_dir: Path) -> None:
    ran(bpf_dir, 16, 1)
    (bpf_dir / "maps" / "flows").unlink()
    (bpf_dir / "maps" / "seats").unlink()
    start = started(bpf_dir, 32)
    assert start.tables == FlowTables(32, 1, 32)
    assert not start.knows(1)
    assert pinned(bpf_dir) == {"flows": 32, "old_flows": 1}
    start.end()


def test_the_seed_of_the_flows_hash_survives(bpf_dir: Path) -> None:
    first = started(bpf_dir, 16)
    settings = first.loaded.bpf[b"settings"]
    settings[0] = settings.Leaf(flow_seed=0x1234_5678_9ABC_DEF0)
    first.end()
    maps = PinnedMaps(bpf_dir)
    tables = maps.flow_tables(32)
    loaded = compile_program(
        str(source_file(XDP)), maps=maps, defines=tables.defines, cache_dir=IMAGES
    )
    assert loaded.bpf[b"settings"][0].flow_seed == 0x1234_5678_9ABC_DEF0
    loaded.close()
    maps.close()


# --------------------------------------------------------------------------- layouts and locks


def test_the_name_in_the_kernel_has_the_fingerprint(bpf_dir: Path) -> None:
    start = started(bpf_dir, 16)
    names = {name: map_name(start.maps.fd(name)) for name in ("flows", "old_flows", "port_cursors")}
    assert [name[:-8] for name in names.values()] == ["flows_", "old_fl_", "port_c_"]
    # A flow table may become the one before: both have one layout.
    fingerprint = map_info(start.maps.fd("flows")).fingerprint
    assert names["flows"][-8:] == names["old_flows"][-8:] == fingerprint
    assert len({name[-8:] for name in names.values()}) == 2
    start.end()


@pytest.mark.parametrize("buckets", [16, 32])
def test_a_flow_table_of_another_layout_is_refused_at_any_size(bpf_dir: Path, buckets: int) -> None:
    old = started(bpf_dir, 16, 1)
    fingerprint = map_info(old.maps.fd("flows")).fingerprint
    other = create_map("flows_00000000", MapType.ARRAY, 4, 1024, 16, 1 << 10)
    pin(other, bpf_dir / "maps" / "flows")
    with pytest.raises(PinMismatch) as refusal:
        Start(bpf_dir, buckets)
    (problem,) = refusal.value.problems
    assert problem.startswith(
        "maps/flows: its layout is another one: "
        f"fingerprint 00000000 pinned, {fingerprint} declared ("
    )
    assert pinned(bpf_dir) == {"flows": 16, "old_flows": 1}
    assert old.knows(1)
    old.end()


@pytest.mark.parametrize("flows_too", [True, False], ids=["with flows", "without flows"])
@pytest.mark.parametrize("locks", [8192, 2048])
def test_locks_are_never_copied(bpf_dir: Path, locks: int, flows_too: bool) -> None:
    old = started(bpf_dir, 16, 1)
    if not flows_too:
        (bpf_dir / "maps" / "flows").unlink()
    source = XDP.replace('#include "maps.h"', LOCKS.format(locks=locks))
    with pytest.raises(PinMismatch, match=f"maps/flow_locks: max_entries 4096 pinned, {locks}"):
        Start(bpf_dir, 16, source=source)
    assert old.knows(1)
    old.end()


LOCKS = """#include "map_macros.h"
#include "types.h"
GALE_MAP("array", int, struct settings, settings, 1, 0);
GALE_MAP("array", int, struct flow_bucket, flows, FLOW_BUCKETS, BPF_F_MMAPABLE);
GALE_MAP("array", int, struct flow_bucket, old_flows, OLD_FLOW_BUCKETS, BPF_F_MMAPABLE);
GALE_MAP("array", int, struct flow_lock, flow_locks, {locks}, 0);
"""


def test_both_generations_take_the_same_locks(bpf_dir: Path) -> None:
    old = started(bpf_dir, 16)
    new = Start(bpf_dir, 32)
    old.knows(1)
    new.knows(1)
    assert new.loaded.bpf[b"flow_locks"][0].padding == 2
    old.end()
    new.end()


def test_fds_are_given_back(bpf_dir: Path) -> None:
    ran(bpf_dir, 16)
    before = open_maps()
    for buckets, old_is_empty in ((32, False), (48, False), (48, True), (48, True)):
        ran(bpf_dir, buckets, old_is_empty=old_is_empty)
    (bpf_dir / "maps" / "seats").unlink()
    with pytest.raises(PinMismatch):
        Start(bpf_dir, 16)
    assert open_maps() == before
    assert open_pin(bpf_dir / "maps" / "new_flows") is None
