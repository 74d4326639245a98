/* Notes of what becomes of flows, for user space: replication to the other LBs, and the NAT log.
 *
 * A note names a place of the flow table and says what has happened there; what is known of the
 * flow, user space reads from the table itself when it needs it. So a note is eight bytes, it is
 * written only where a flow's state changes, and an ordinary packet of an established flow pays
 * nothing for it: an idle connection is as well known as a busy one.
 *
 *     NOTE_OPENED   both sides have been heard: TCP's handshake is complete, or the client of a UDP
 *                   flow went on after an answer; or it goes on for a second without one
 *     NOTE_CLOSED   it is over, by its FINs or by a RST, or its node is dead
 *     NOTE_RENEWED  it lives, and a quarter of its timeout has gone by since this was said last; or
 *                   packets of it have come here for the first time, which came to another LB
 * before
 *
 * Where user space does not read them the ring is full at some time, and notes are lost: counted.
 */
#ifndef GALE_NOTES_H
#define GALE_NOTES_H

#include "flow_table.h"

#define NOTE_KIND_SHIFT 32
#define NOTE_OLD_SHIFT 40

static __always_inline void tell(const struct place *place, const struct settings *own,
				 enum note note)
{
	struct draft *draft;
	__u64 *lost;
	int zero = 0;

	if (!own->notes)
		return;
	draft = drafts.lookup(&zero);
	lost = lost_notes.lookup(&zero);
	if (!draft || !lost)
		return;
	draft->note = place->index | (__u64)note << NOTE_KIND_SHIFT |
		      (__u64)place->is_old << NOTE_OLD_SHIFT;
	if (notes.ringbuf_output(&draft->note, sizeof(draft->note), 0))
		*lost += 1;
}

/* Whether the flow's deadline moves on across a border that lies every quarter of its timeout,
 * counted from the flow's own beginning, so that not all flows have it at once. Seen from the
 * client's side: who only sends data is still acknowledged.
 */
static __always_inline int is_renewal_due(const struct flow *request, __u32 timeout, __u32 deadline)
{
	__u32 quarter = timeout / 4;

	if (!quarter)
		return 0;
	return (request->deadline - request->begin) / quarter !=
	       (deadline - request->begin) / quarter;
}

#endif
