"""Whole machines, to be deployed to by the playbooks as they are: systemd, sshd, avahi, supervisord.

Each has a root of its own that debootstrap made from the distribution's packages (once, kept in
build/machines), with a layer in memory on top, and network, process and mount namespaces that
systemd-nspawn makes. So they boot in a second, on this machine's kernel. All of them, and the one
that deploys and asks, are joined by a bridge that leads nowhere else.

    root       the file system that all of them begin with
    wire       the network
    machine    one machine: boot, run a command there, power off
    inventory  what Ansible is told of them
    __main__   `make e2e-machines`: deploy twice, ask each mode, upgrade
"""
