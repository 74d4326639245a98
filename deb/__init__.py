"""Debian packages of Gale: `make deb`.

Three packages come of one checkout:

    gale-common   the programs with what they import, users, directories, man pages, completion
    gale-lb       the group `gale` for supervisord, and what only a load balancer needs
    gale-node     the group `gale-node`

The programs live in a virtual environment of their own, /usr/lib/gale, since Debian 12 has some of
what they import too old and some not at all. It sees the distribution's packages, for bcc comes
from there. It is made for the Python of the machine that builds it: the package depends on exactly
that one, so build on the distribution that the packages are for.

`build` stages the files and has dpkg-deb pack them; `manual` writes the man pages from the command
line program itself. What the packages bring beside the programs, the maintainers' scripts too,
stands in `common/`, `lb/` and `node/` as it is installed.
"""
