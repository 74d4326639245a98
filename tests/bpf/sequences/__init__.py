"""Sequences: whole conversations through L4, played and judged by a model that knows better.

    python -m tests.bpf.sequences --seeds 100000 [--first N] [--jobs 2] [--mutant NAME]

A seed is a scenario. Clients open, use, close, abort and lose connections to a service of one to
three nodes; all segments go through the load balancer, by way of a network that loses, doubles,
reorders and delays them; a forger who knows the addresses and ports but no sequence number puts
segments of his own in between; strangers try to be given a port that is still in use. The seed
decides which of these faults occur at all (swarm testing: a fault that is always there hides
others), and ends with what must hold of any history: what is healed finishes, what is silent is
forgotten in time, who comes back is served.

    segments.py    a TCP segment, its frame, and arithmetic with sequence numbers
    endpoint.py    one end of a connection: RFC 9293 with RFC 5961, 7323 (windows), 7413
    world.py       hosts, network, forger, and the virtual time they live in; plays events
    judge.py       the oracle: what must come out, from when on a port may be another's
    generator.py   from a seed to a scenario; draws each event knowing the world it meets
    balancer.py    the real programs by BPF_PROG_TEST_RUN, and `FlowTable`, the way into the maps
    reference.py   a load balancer in Python that does all of this right: it proves the oracle
    campaign.py    many seeds in several processes; what the command above does
    trial.py       plays a seed, makes a failing history short, and writes it down
    mutants.py     faults put into the C sources on purpose, each of which must be caught

The endpoints know nothing of a load balancer and the oracle nothing of the programs. A scenario is
a list of events, each of them plain (`("lose", "up", 2)`), and each does nothing where it does not
apply; so a failing history is made short by leaving events out.

Time is virtual: it passes by ageing the flow table. Where real time has passed that could matter
(a machine that stood still), a failure is not believed, but played again.
"""
