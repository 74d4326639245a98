"""Which services and VIPs the next table has: a rolling change of the files expels nobody. Pure.

Each LB stages what its own file says: a digest of it goes with every answer to the leader. The
table goes on with what is agreed until one of these holds:

* nothing is agreed yet: the leader's own file says it;
* every member that is alive has staged the same as the leader, so nobody is left behind;
* an operator has told the leader not to wait for the others (`gale reload --majority`), and more
  than half of the members have staged the same as the leader.

So whichever LB leads, a restart, a reload or a change of leader half way through a change of the
files changes no service; and which file is newer is not asked.
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
    said = {"services": services, "vips": vips}
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
