"""Small programs over Gale's own maps that know a flow by its client's port, in either flow table.

They stand for the real ones where a test is about maps and hooks: the verdict on a packet tells
whether its flow was found. A flow stands in the first place of the bucket `port % buckets`.
"""

from __future__ import annotations

import socket

from bpf.loader import LoadedObject
from tests.bpf.harness import XdpVerdict, run_xdp, source_file, tcp

_COMMON = """
#include <linux/bpf.h>
#include "maps.h"

static __always_inline u16 client_port(void *data, void *data_end)
{
	return data + 36 > data_end ? 0 : *(__be16 *)(data + 34);
}
"""
# bcc wants each look-up in a function's own text; the three hooks of TC share none with XDP.
_BODY = """
{
	u16 port = client_port((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	int zero = 0, at = bpf_ntohs(port) % FLOW_BUCKETS;
	struct settings *all = settings.lookup(&zero);
	struct flow_bucket *bucket = flows.lookup(&at);
	struct flow_lock *lock = flow_locks.lookup(&zero);

	if (!port || !all || !bucket || !lock)
		return ABSENT;
	bpf_spin_lock(&lock->lock);
	lock->padding += 1;
	bpf_spin_unlock(&lock->lock);
	if (bucket->flow[0].key.sport == port)
		return FOUND;
	if (!all->chained)
		return ABSENT;
	at = bpf_ntohs(port) % OLD_FLOW_BUCKETS;
	bucket = old_flows.lookup(&at);
	return bucket && bucket->flow[0].key.sport == port ? FOUND : ABSENT;
}
"""


def _source(context: str, found: str, absent: str, *functions: str) -> str:
    body = _BODY.replace("FOUND", found).replace("ABSENT", absent)
    return _COMMON + "".join(f"\nint {name}(struct {context} *ctx){body}" for name in functions)


XDP = _source("xdp_md", "XDP_TX", "XDP_DROP", "gale_xdp_public", "gale_xdp_reply")
TC = _source(
    "__sk_buff", "TC_ACT_OK", "TC_ACT_SHOT", "gale_tc_public", "gale_tc_private", "gale_tc_own"
).replace("#include <linux/bpf.h>", "#include <linux/bpf.h>\n#include <linux/pkt_cls.h>")


def sources() -> tuple[str, str]:
    """The files that stand for xdp.c and tc.c."""
    return str(source_file(XDP)), str(source_file(TC))


def add_flow(loaded: LoadedObject, port: int, table: str = "flows") -> None:
    """As a program would have it; there must be no other in its bucket."""
    flows = loaded.bpf[table.encode()]
    leaf = flows[port % flows.info.max_entries]
    assert leaf.flow[0].key.sport == 0
    leaf.flow[0].key.sport = socket.htons(port)
    flows[port % flows.info.max_entries] = leaf


def finds(program: int, port: int) -> bool:
    """Whether the loaded XDP program knows the flow of this port."""
    packet = tcp(("192.0.2.1", port), ("192.0.2.2", 80))
    return run_xdp(program, packet).verdict is XdpVerdict.TX
