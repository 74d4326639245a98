"""The programs in the kernel, and how they get there.

The C programs and their headers, and the Python that both kinds of machine bring them up with:
`compiler` (C to images), `loader` (images to programs), `pins` and `table` (maps, which outlive the
process), `attach` (programs on interfaces) over `syscall` (bpf(2) itself). What the programs are
for is decided by the services; nothing here knows one.
"""
