"""Gale on the kernel that Debian 12 ships, in a machine that qemu emulates: `make vm`.

The kernel of the machine that runs the tests is one of many. This shows the same on a stock 6.1,
with the network cards of a virtual machine:

1. `host` fetches the kernel's package from the distribution, once, and makes a first file system
   of its modules and `init.sh`. The programs are compiled here: an emulated compiler is slow.
2. qemu boots it. The machine's root is this machine's own, read-only, over 9p, and a layer in
   memory on top: so all that is installed here is there, and nothing done there reaches here. Two
   virtio cards are joined by qemu and lead nowhere else.
3. `guest` runs there: the verifier takes each program; then a lab for each mode, whose LB has one
   of the cards for its public interface, and a client's request and a download through it.

All of it is emulated, also where a machine has /dev/kvm, so that it is the same everywhere: it
takes minutes. What is fetched and built is kept in build/vm. The result comes by a serial line of
its own: a machine that hangs or panics has not said that all is well.
"""
