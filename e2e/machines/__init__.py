"""Whole machines, with systemd, sshd and avahi: the playbooks are run against them as they are.

Each has a root of its own that debootstrap made from the distribution's packages (once, kept in
build/machines), with a layer in memory on top, and network, process and mount namespaces that
systemd-nspawn makes. So they boot in a second, on this machine's kernel. All of them, and the one
that deploys and asks, are joined by a bridge that leads nowhere else.

    root       the file system that all of them begin with
    machine    the network, and one machine: boot, run a command there, end
    site       several machines, what Ansible is told of them, and what the playbooks do to them
    packages   those of `make deb`, and the same of a newer version
    layer      `make e2e-packages`: what dpkg does of them, over this machine's own file system
    show       what is said of what was seen
    __main__   `make e2e-machines`: the whole of it shown, with the time that it took
"""
