"""The users that Gale's processes run as, on a machine where no package has made them.

conf/rights.toml says who they are. Nothing is added to the host's own files: `supervisord` of a
machine of the lab runs where /etc/passwd and /etc/group are the lab's (`as_a_machine`), in a mount
namespace of its own. Who has the users already, from the packages, keeps their numbers.

The checkout may lie where these users cannot reach it, in root's home say. There they find an empty
directory in the place of the first one that is closed, and in it, at the same path, the checkout.
"""

from __future__ import annotations

import grp
import os
import pwd
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from e2e.lab import plan

RIGHTS_FILE = plan.CHECKOUT_DIR / "conf" / "rights.toml"
GROUPS = ("gale", "gale-keys")
FIRST_ID = 64_800
PASSWD, GROUP = plan.ROOT_DIR / "passwd", plan.ROOT_DIR / "group"
CHECKOUT = plan.ROOT_DIR / "checkout"
"""Another way to the checkout, which nobody has closed."""
ENTER = """
set -e
mount --bind "$1" /etc/passwd
mount --bind "$2" /etc/group
if [ -n "$3" ]; then
    mount -t tmpfs -o mode=0755 gale-lab "$3"
    mkdir -p "$5"
    mount --bind "$4" "$5"
fi
shift 5
exec "$@"
"""


@cache
def rights() -> dict[str, dict[str, object]]:
    """By process: its user and its capabilities."""
    table: dict[str, dict[str, object]] = tomllib.loads(RIGHTS_FILE.read_text())["processes"]
    return table


def _names() -> tuple[str, ...]:
    return tuple(str(each["user"]) for each in rights().values())


def user_id(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return FIRST_ID + len(GROUPS) + _names().index(name)


def group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return FIRST_ID + GROUPS.index(name)


def write() -> None:
    """The host's own files, with what is missing there."""
    passwd = [line for line in _lines("/etc/passwd") if line.split(":")[0] not in _names()]
    for name in _names():
        passwd.append(f"{name}:x:{user_id(name)}:{group_id('gale')}::/:/usr/sbin/nologin")
    members = {"gale": _names(), "gale-keys": tuple(each for each in _names() if "api" not in each)}
    groups = [line for line in _lines("/etc/group") if line.split(":")[0] not in GROUPS]
    groups += [f"{name}:x:{group_id(name)}:{','.join(members[name])}" for name in GROUPS]
    PASSWD.write_text("\n".join(passwd) + "\n")
    GROUP.write_text("\n".join(groups) + "\n")


def _lines(path: str) -> Iterator[str]:
    return iter(Path(path).read_text().splitlines())


def give(path: Path, user: str, group: str, mode: int) -> None:
    """Have a directory or file belong to a user of the lab, or to root."""
    os.chown(path, 0 if user == "root" else user_id(user), group_id(group))
    path.chmod(mode)


def closed_directory() -> Path | None:
    """The first one on the way to the checkout that not everybody may pass through."""
    for directory in reversed(plan.CHECKOUT_DIR.parents):
        if not directory.stat().st_mode & 0o001:
            return directory
    return None


def as_a_machine() -> list[str]:
    """The words before a command that is to know these users."""
    closed = closed_directory()
    places = [PASSWD, GROUP, closed or "", CHECKOUT, plan.CHECKOUT_DIR]
    entering = ["sh", "-c", ENTER, "enter", *map(str, places)]
    return ["unshare", "--mount", "--propagation", "slave", "--", *entering]
