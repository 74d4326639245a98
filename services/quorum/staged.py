"""Which services and VIPs the next table has: a rolling change of the files expels nobody. Pure.

Each LB stages what its own file says: a digest of it goes with every answer to the leader. The
table goes on with what is agreed until one of these holds:

* nothing is agreed yet: the leader's own file says it;
* every member that is alive has staged the same as the leader, so nobody is left behind;
* an operator has told the leader not to wait for the others (`gale reload --majority`), and more
  than half of the members have staged the same as the leader.

So whichever LB leads, a restart, a reload or a change of leader half way through a change of the
files changes no service; and which file is newer is not asked.

The rules are functions; `Staging` is one LB's part in them: what it has staged, what is agreed, and
whether an operator has told it not to wait. That holds until the next change is committed.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from bus.codec import to_json
from bus.states import NodeTable
from services.quorum.table import FloatingVip, TableConfig

DIGEST_LETTERS = 16


def digest(config: TableConfig) -> str:
    """The same for two files that say the same of services and VIPs, in any order."""
    services = sorted(config.services, key=lambda service: service.name)
    vips = sorted(config.vips, key=lambda vip: vip.address)
    return digest_of({"services": services, "vips": vips})


def digest_of(said: object) -> str:
    """Of what a file says, in an order that does not depend on the file's."""
    return sha256(to_json(said)).hexdigest()[:DIGEST_LETTERS]


def agreed(table: NodeTable) -> TableConfig:
    """What the table has of it."""
    vips = (FloatingVip(vip.address, vip.snat_addresses) for vip in table.vip_owners)
    return TableConfig(table.services, tuple(vips))


def same_config(one: NodeTable, other: NodeTable) -> bool:
    """Whether both have the same services and VIPs; cheaper than to compare digests."""
    return one.services == other.services and agreed(one).vips == agreed(other).vips


def next_config(
    table: NodeTable,
    own: TableConfig,
    alive: Iterable[str],
    staged: Iterable[str],
    *,
    members: int,
    by_majority: bool,
) -> TableConfig:
    """What the table after `table` is made with.

    `alive`: what each other member that is alive has staged; `staged`: what each other member has
    staged that was ever heard; `members`: how many there are, this LB included.
    """
    if table.epoch == 0:
        return own
    wanted = digest(own)
    if all(each == wanted for each in alive):
        return own
    if by_majority and 2 * (1 + sum(each == wanted for each in staged)) > members:
        return own
    return agreed(table)


class Staging:
    """What this LB's file says, and what all go by."""

    def __init__(
        self, config: TableConfig, known: NodeTable | None, *, alone: bool, witness: bool
    ) -> None:
        """`known`: the newest table that this LB remembers. `alone`: nobody else has a say.
        `witness`: its file has no services.
        """
        self._config, self._alone = config, alone
        self._by_majority = False
        self.own = "" if witness else digest(config)
        """The digest of what this LB's file says."""
        self.agreed = digest(agreed(known)) if known is not None else ""
        """Of what the committed table has; empty: there is none yet."""

    def stage(self, config: TableConfig, *, witness: bool) -> bool:
        """The file was read again; whether that stages what was neither staged here nor agreed."""
        self._config = config
        was, self.own = self.own, "" if witness else digest(config)
        return self.own not in (was, self.agreed) and not self._alone

    def insist(self, others: list[str]) -> None:
        """An operator wants this to hold though not all have staged it; `others` have staged these.

        Raises ValueError, in words, if not even a majority has.
        """
        has, members = 1 + others.count(self.own), len(others) + 1
        if 2 * has <= members:
            raise ValueError(f"staged on {has} of {members}: that is no majority")
        self._by_majority = True

    def committed(self, before: NodeTable | None, table: NodeTable) -> bool:
        """All go by `table`, and went by `before`; whether people are to hear of a change."""
        if before is not None and same_config(before, table):
            return False
        was, self.agreed = self.agreed, digest(agreed(table))
        self._by_majority = False
        return was not in ("", self.agreed)

    def next_config(self, table: NodeTable, alive: list[str], staged: list[str]) -> TableConfig:
        """For the leader: what the table after `table` is made with.

        `alive`: what each other LB that forwards and is alive has staged; `staged`: what each other
        one that forwards has.
        """
        if self._alone:
            return self._config
        members, by_majority = len(staged) + 1, self._by_majority
        return next_config(
            table, self._config, alive, staged, members=members, by_majority=by_majority
        )
