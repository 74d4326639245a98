/* Entering flows that another LB told of. It never sees a packet: user space writes a batch of
 * records into the map `replicas`, which it has mapped, and runs this program as often as there are
 * records (BPF_PROG_TEST_RUN); each run takes the next one and leaves its outcome there.
 *
 * It works on the same table by the same rules as the programs that forward: every place is taken
 * under its bucket's lock, reply first. But a replica takes no place from anybody: only one that is
 * free or expired. What finds none is REPLICA_FULL.
 *
 *     what stands under the client's key     record                         what is done
 *     ─────────────────────────────────────────────────────────────────────────────────────────
 *     nothing, or expired                    update                         ENTERED, or FULL,
 *                                                                           or PORT_TAKEN
 *                                            close                          ABSENT
 *     the same flow (client, node, port)     began before it                LATE
 *       alive                                close                          CLOSED
 *       alive, nobody heard of it here       update                         RENEWED, numbers too
 *       alive, its packets came here         update                         RENEWED if that LB has
 *                                                                           heard of it later
 *       closed                               update, began after it         ENTERED again
 *                                            update, the same               LATE
 *                                            close                          RENEWED, unchanged
 *     another flow of that client's          update, began after it, and    replaced: ENTERED
 *                                              nobody heard of it here, or
 *                                              it is half-open or closed
 *                                            anything else                  CLASH
 *
 * When a flow began is told as its age, which takes a while to come, so two LBs may differ by some
 * ticks: what differs by more than a second are two flows. Of a replica nobody knows whom the
 * client's packets come from (`last_hop`): until one comes here, replies go by the kernel's routes.
 *
 * It is a program for TC, though no device ever has it: to run one for XDP more than once, the
 * kernel first gives that a place of its own in the path of all packets, and takes it away again,
 * and waits for all CPUs each time: some tens of milliseconds for every batch.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/icmp.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "ports.h"

#define REPLICA_BATCH 4096
#define CLOSE_TICKS TICKS_PER_SECOND /* how much two LBs may differ about when a flow began */

enum replica_outcome {
	REPLICA_NONE, /* not looked at yet */
	REPLICA_ENTERED,
	REPLICA_RENEWED,
	REPLICA_CLOSED,
	REPLICA_ABSENT,
	REPLICA_LATE,
	REPLICA_CLASH,
	REPLICA_PORT_TAKEN,
	REPLICA_FULL,
};

/* One record, with all that is this machine's own (ticks, seat) filled in by user space. */
struct replica {
	struct flow request; /* as the request's direction is to stand in the table */
	__u32 reply_end;
	__u32 reply_acked;
	__u32 reply_edge;
	__u8 reply_scale;
	__u8 reply_flags;
	__u8 carried; /* that LB forwards it */
	__u8 outcome; /* enum replica_outcome */
};

_Static_assert(sizeof(struct replica) == 80, "a record is 80 bytes");

/* Mapped and written by user space. Not pinned: a batch lasts as long as its run. */
GALE_MAP("array", int, struct replica, replicas, REPLICA_BATCH, BPF_F_MMAPABLE);
GALE_MAP("array", int, u64, replica_cursor, 1, 0); /* the record that comes next */
GALE_MAP("percpu_array", int, struct draft, replica_draft, 1, 0);

/* How far this LB has come with each of those that tell it: outlives the process as the table does.
 */
struct replica_progress {
	__u64 teller; /* hash of its address; 0: this place is free */
	__u64 boot;
	__u64 next_seq;
	__s64 position;
};

GALE_MAP("array", int, struct replica_progress, replica_progress, 64, 0);

/* What stands under the record's key, fetched before any lock is taken. */
struct standing {
	struct flow *request;
	struct flow *reply; /* 0: it has gone, or is not this flow's */
	struct flow_lock *request_lock;
	struct flow_lock *reply_lock;
	__u64 request_word;
	__u64 reply_word;
	__u32 is_same; /* the same node and port */
};

static __always_inline void fetch_standing(const struct place *place, const struct replica *replica,
					   struct standing *standing)
{
	struct rewrite to;

	standing->request = place->flow;
	standing->request_word = entry_word(place->flow);
	standing->request_lock = lock_of(place->index);
	standing->reply = 0;
	if (read_rewrite(place->flow, &replica->request.key, &to))
		return;
	standing->is_same =
		to.saddr == replica->request.saddr && to.daddr == replica->request.daddr &&
		to.sport == replica->request.sport && to.dport == replica->request.dport;
	standing->reply = other_direction(place, &replica->request.key, &to);
	if (!standing->reply)
		return;
	standing->reply_lock = lock_of(place->flow->other);
	standing->reply_word = entry_word(standing->reply);
	if (!standing->reply_lock || IS_BEING_WRITTEN(standing->reply_word))
		standing->reply = 0;
}

/* What the record says of both directions; the caller holds a lock of either entry's bucket. */
static __always_inline void write_numbers(const struct replica *replica, struct flow *request,
					  struct flow *reply)
{
	request->flags = replica->request.flags | FLOW_REPLICA;
	request->end = replica->request.end;
	request->acked = replica->request.acked;
	request->edge = replica->request.edge;
	request->begin = replica->request.begin;
	request->scale = replica->request.scale;
	request->reach = replica->request.reach;
	reply->flags = replica->reply_flags | FLOW_REPLICA;
	reply->end = replica->reply_end;
	reply->acked = replica->reply_acked;
	reply->edge = replica->reply_edge;
	reply->scale = replica->reply_scale;
	reply->reach = replica->request.reach;
	reply->begin = 0;
}

/* Under an entry's own lock: a new state and deadline, if it is still that entry. */
static __always_inline int set_entry(struct flow *flow, struct flow_lock *lock, __u64 word,
				     __u8 state, __u32 deadline)
{
	int is_same;

	bpf_spin_lock(&lock->lock);
	is_same = entry_word(flow) == word;
	if (is_same) {
		flow->state = state;
		flow->deadline = deadline;
	}
	bpf_spin_unlock(&lock->lock);
	return is_same;
}

/* The flow that stands there becomes what the record says. */
static __always_inline enum replica_outcome bring_up_to_date(const struct replica *replica,
							     const struct standing *standing,
							     int with_numbers)
{
	__u8 state = replica->request.state;
	__u32 deadline = replica->request.deadline;

	if (!set_entry(standing->reply, standing->reply_lock, standing->reply_word, state,
		       deadline))
		return REPLICA_ABSENT;
	if (!set_entry(standing->request, standing->request_lock, standing->request_word, state,
		       deadline)) {
		set_entry(standing->reply, standing->reply_lock, standing->reply_word, FLOW_FREE,
			  0);
		return REPLICA_ABSENT;
	}
	if (!with_numbers)
		return REPLICA_RENEWED;
	bpf_spin_lock(&standing->request_lock->lock);
	if (entry_word(standing->request) == standing->request_word)
		write_numbers(replica, standing->request, standing->reply);
	bpf_spin_unlock(&standing->request_lock->lock);
	return REPLICA_RENEWED;
}

/* The record is about the flow that stands there, or about one before or after it on the same
 * ports.
 */
static __always_inline enum replica_outcome follow_record(const struct replica *replica,
							  const struct standing *standing)
{
	const struct flow *request = standing->request;
	__s32 later = replica->request.begin - request->begin;
	int closes = is_closed(replica->request.state), is_other = later > CLOSE_TICKS;
	int is_later = has_passed(request->deadline + TOUCH_TICKS, replica->request.deadline);
	int is_heard = !(request->flags & standing->reply->flags & FLOW_REPLICA);
	enum replica_outcome done;

	if (later < -CLOSE_TICKS)
		return REPLICA_LATE;
	if (is_closed(request->state)) {
		if (closes)
			return REPLICA_RENEWED;
		if (!is_other)
			return REPLICA_LATE;
		done = bring_up_to_date(replica, standing, 1);
		return done == REPLICA_RENEWED ? REPLICA_ENTERED : done;
	}
	if (closes) {
		done = bring_up_to_date(replica, standing, 0);
		return done == REPLICA_RENEWED ? REPLICA_CLOSED : done;
	}
	if (is_heard && !is_other && !(replica->carried && is_later))
		return REPLICA_RENEWED;
	return bring_up_to_date(replica, standing, 1);
}

/* Another flow of that client's stands there. 0: it has made room. */
static __always_inline int stays(const struct replica *replica, const struct standing *standing)
{
	const struct flow *request = standing->request;
	int is_newer = (__s32)(replica->request.begin - request->begin) > CLOSE_TICKS;

	if (is_closed(replica->request.state))
		return 1;
	/* Where one direction has gone the flow has too. */
	if (standing->reply &&
	    (!is_newer || (is_protected(request->state) && !(request->flags & FLOW_REPLICA))))
		return 1;
	/* Of one that is closed the port goes on resting: its reply keeps its place. */
	if (standing->reply && !is_closed(request->state))
		set_entry(standing->reply, standing->reply_lock, standing->reply_word, FLOW_FREE,
			  0);
	return !set_entry(standing->request, standing->request_lock, standing->request_word,
			  FLOW_FREE, 0);
}

/* Both directions of a flow that is not there yet: reply first, which is what holds the port. */
static __always_inline enum replica_outcome enter(const struct replica *replica,
						  const struct settings *own, struct draft *draft,
						  __u32 now)
{
	struct place request = place_of(&replica->request.key, own), reply;
	struct flow_key key = reply_key(&replica->request);
	struct flow_lock *lock;
	enum claim claim;

	if (judge_key(&key, own, now) != CLAIM_GRANTED)
		return REPLICA_PORT_TAKEN;
	draft->request = replica->request;
	draft->request.other = ~0U;
	reply = place_of(&key, own);
	claim = unknown(
		own, claim_place(&reply, &key, draft, DIRECTION_REPLY, own, now, CLAIM_ONLY_FREE));
	lock = lock_of(reply.index);
	if (claim != CLAIM_GRANTED || !lock || !reply.flow)
		return claim == CLAIM_FULL ? REPLICA_FULL : REPLICA_PORT_TAKEN;
	draft->request.other = reply.index;
	claim = unknown(own, claim_place(&request, &replica->request.key, draft, DIRECTION_REQUEST,
					 own, now, CLAIM_ONLY_FREE));
	bpf_spin_lock(&lock->lock);
	if (has_key(reply.flow, &key)) {
		if (claim == CLAIM_GRANTED && request.flow) {
			reply.flow->other = request.index;
			write_numbers(replica, request.flow, reply.flow);
		} else {
			reply.flow->state = FLOW_FREE;
		}
	}
	bpf_spin_unlock(&lock->lock);
	if (claim == CLAIM_GRANTED)
		return REPLICA_ENTERED;
	return claim == CLAIM_FULL ? REPLICA_FULL : REPLICA_CLASH;
}

static __always_inline enum replica_outcome take_record(const struct replica *replica,
							const struct settings *own,
							struct draft *draft, __u32 now)
{
	struct place place = find_flow(&replica->request.key, own);
	struct standing standing = {};

	if (place.flow && !is_takeable(place.flow, now)) {
		fetch_standing(&place, replica, &standing);
		if (!standing.request_lock || IS_BEING_WRITTEN(standing.request_word))
			return REPLICA_CLASH;
		if (standing.reply && standing.is_same)
			return follow_record(replica, &standing);
		if (stays(replica, &standing))
			return REPLICA_CLASH;
	}
	if (is_closed(replica->request.state))
		return REPLICA_ABSENT;
	return enter(replica, own, draft, now);
}

int gale_replica(struct __sk_buff *ctx)
{
	struct settings *own;
	struct replica *replica;
	struct draft *draft;
	int zero = 0, number;
	u64 *cursor;

	own = settings.lookup(&zero);
	cursor = replica_cursor.lookup(&zero);
	draft = replica_draft.lookup(&zero);
	if (!own || !cursor || !draft)
		return TC_ACT_SHOT;
	number = (*cursor)++;
	replica = replicas.lookup(&number);
	if (replica)
		replica->outcome = take_record(replica, own, draft, ticks_now());
	return TC_ACT_SHOT;
}
