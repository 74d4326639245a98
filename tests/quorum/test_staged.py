"""A rolling change of the files: what is staged, and when it is agreed on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.quorum.staged import Staging, agreed, digest, next_config, same_config
from services.quorum.table import FloatingVip, TableConfig, bootstrap, merge
from tests.quorum.views import ECHO, WEB

OLD = TableConfig((WEB,), (FloatingVip("10.80.0.100", ("10.81.0.100",)),))
NEW = TableConfig((WEB, ECHO), OLD.vips)
TABLE = merge(bootstrap(1, 7), {}, OLD, ["lb-0"], term=1)
D_OLD, D_NEW = digest(OLD), digest(NEW)


def test_a_digest_is_of_what_is_said_in_any_order() -> None:
    vips = (FloatingVip("10.80.0.9"), *OLD.vips)
    one = TableConfig((WEB, ECHO), vips)
    assert digest(one) == digest(TableConfig((ECHO, WEB), vips[::-1]))
    assert digest(one) != digest(TableConfig((ECHO, WEB), OLD.vips))
    assert digest(OLD) != digest(TableConfig((replace(WEB, port=81),), OLD.vips))


def test_a_table_tells_what_it_was_made_with() -> None:
    assert digest(agreed(TABLE)) == D_OLD
    assert same_config(TABLE, replace(TABLE, epoch=9, nodes=()))
    assert not same_config(TABLE, merge(TABLE, {}, NEW, ["lb-0"], term=1))


@pytest.mark.parametrize(
    ("alive", "staged", "by_majority", "holds"),
    [
        ([D_NEW, D_NEW], [D_NEW, D_NEW], False, NEW),
        ([D_NEW, D_OLD], [D_NEW, D_OLD], False, OLD),
        ([D_NEW], [D_NEW, D_OLD], False, NEW),
        ([], [D_OLD, D_OLD], False, NEW),
        ([D_NEW, ""], [D_NEW, ""], False, OLD),
        ([D_NEW, D_OLD], [D_NEW, D_OLD], True, NEW),
        ([D_OLD, D_OLD], [D_OLD, D_OLD], True, OLD),
    ],
)
def test_who_must_have_staged_the_same(
    alive: list[str], staged: list[str], by_majority: bool, holds: TableConfig
) -> None:
    config = next_config(TABLE, NEW, alive, staged, members=3, by_majority=by_majority)
    assert digest(config) == digest(holds)


def test_the_first_table_is_made_of_the_leaders_file() -> None:
    first = bootstrap(1, 7)
    assert next_config(first, NEW, [D_OLD], [D_OLD], members=2, by_majority=False) == NEW


# --------------------------------------------------------------------------- one LB's part


def staging(config: TableConfig = OLD, *, alone: bool = False) -> Staging:
    return Staging(config, TABLE, alone=alone, witness=False)


def test_only_what_is_new_and_not_agreed_is_staged_as_news() -> None:
    made = staging()
    assert (made.own, made.agreed) == (D_OLD, D_OLD)
    assert made.stage(NEW, witness=False)
    assert not made.stage(NEW, witness=False), "it was staged before"
    assert not made.stage(OLD, witness=False), "it is agreed"
    assert not staging(alone=True).stage(NEW, witness=False), "nobody else is to agree"


def test_an_operator_may_insist_where_a_majority_has_it_and_for_one_change() -> None:
    made = staging(NEW)
    with pytest.raises(ValueError, match="staged on 1 of 3"):
        made.insist([D_OLD, D_OLD])
    with pytest.raises(ValueError, match="staged on 2 of 4"):
        made.insist([D_NEW, D_OLD, D_OLD])
    assert made.next_config(TABLE, [D_OLD], [D_NEW, D_OLD]) == OLD
    made.insist([D_NEW, D_OLD])
    assert made.next_config(TABLE, [D_OLD], [D_NEW, D_OLD]) == NEW
    newer = merge(TABLE, {}, NEW, ["lb-0"], term=1)
    assert made.committed(TABLE, newer), "people hear of it"
    assert made.agreed == D_NEW
    made.stage(OLD, witness=False)
    assert made.next_config(newer, [D_NEW], [D_OLD, D_NEW]) == NEW, "the next has to be agreed on"


def test_what_is_committed_first_or_again_is_no_change() -> None:
    made = Staging(OLD, None, alone=False, witness=False)
    assert made.agreed == ""
    assert not made.committed(None, TABLE)
    assert made.agreed == D_OLD
    assert not made.committed(TABLE, replace(TABLE, epoch=9))


def test_one_alone_goes_by_its_file() -> None:
    assert staging(NEW, alone=True).next_config(TABLE, [], []) == NEW
