/* SPDX-License-Identifier: GPL-2.0 */
/* Flows by the thousand, as if their handshakes had just been seen: entered as a replica is, then
 * made this LB's own, and noted.
 */
#include "replica.c"

int bench_open(struct __sk_buff *ctx)
{
	struct settings *own;
	struct replica *replica;
	struct draft *draft;
	struct flow *other;
	struct place place;
	int zero = 0, number;
	u64 *cursor;

	own = settings.lookup(&zero);
	cursor = replica_cursor.lookup(&zero);
	draft = replica_draft.lookup(&zero);
	if (!own || !cursor || !draft)
		return TC_ACT_SHOT;
	number = (*cursor)++;
	replica = replicas.lookup(&number);
	if (!replica)
		return TC_ACT_SHOT;
	replica->outcome = take_record(replica, own, draft, ticks_now());
	place = find_flow(&replica->request.key, own);
	if (replica->outcome != REPLICA_ENTERED || !place.flow)
		return TC_ACT_SHOT;
	other = flow_at(place.flow->other, 0);
	place.flow->flags = 0;
	if (other)
		other->flags = 0;
	tell(&place, own, NOTE_OPENED);
	return TC_ACT_SHOT;
}
