"""`make bench`: what a packet costs, how many fit through, and what TCP makes of it.

Five benchmarks, most against something measured in the same minutes on the same machine: `cost`
(a program's own nanoseconds, beside a look-up among a million flows in a table of the kernel's),
`veth` (packets per second through two interfaces, beside a bare redirect and beside nftables),
`tcp` (requests, connections and gigabits through nftables, HAProxy and nginx), `connections`
(what becomes of each of 222,000, where the kernel's settings are as they are) and `control` (what
the processes cost while nothing changes). No time is ever
asserted: a benchmark says what it saw, beside the goal.

Each writes its table and its plot into docs/benchmarks.md, between its marks. `e2e.bench.samples`
says what is made of the trials.
"""
