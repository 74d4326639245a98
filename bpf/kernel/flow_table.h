/* SPDX-License-Identifier: GPL-2.0 */
/* The flow table: who is where, who may read and write it, and how a place is taken.
 *
 * An array of buckets of sixteen places, one direction of a flow in each, in one cache line: its
 * key, the whole rewrite, its state, and the place of the other direction. A seeded hash names the
 * bucket and in it the place where to begin looking ("home"); a flow that is known costs one access
 * to memory. Every entry carries its own deadline, and one whose deadline is over is a free place:
 * nothing sweeps, nothing waits for user space, no flow is ever moved out for another one that is
 * alive and established.
 *
 * A new flow takes, in its bucket, of the places that are free or expired the one nearest to its
 * home; if none is left, or half-open flows hold their share already, the oldest half-open one;
 * else it is refused by name. Half-open means what can be forged without seeing an answer: a SYN, a
 * datagram, and a datagram that was answered once. More datagrams after that can be forged as well,
 * so a UDP flow in its first second makes room, too, if there is no other left that could. A closed
 * flow keeps its place until its deadline, and with it its port: the node may be in TIME_WAIT.
 *
 * Writers. A bucket's keys, and whether a place may be taken, change under the bucket's lock only
 * (of FLOW_LOCKS, shared by buckets). Only one lock can be held at a time, so a pair is entered
 * reply first, since that is what reserves an SNAT port, and each half is verified by its key and
 * version. What is alive and established is protected: nobody takes its place, so its state may
 * be written under the lock of the request's bucket for both halves, and what every packet
 * changes (numbers, deadline) without a lock: it is each direction's own.
 *
 * Readers hold no lock. They read the word that has the ports and the version, copy the rewrite,
 * and read that word again: a version that is odd or has changed means that somebody was writing.
 * Stores and loads keep their order on x86, which is what Gale runs on.
 *
 * An entry is dead for readers at its deadline, and for those who take places GRACE_TICKS later: a
 * reader that was just in time is long done when its entry goes to somebody else.
 */
#ifndef GALE_FLOW_TABLE_H
#define GALE_FLOW_TABLE_H

#include "bucket.h"
#include "packet.h"
#include "nat.h"
#include "hash.h"

#define GRACE_TICKS 2
#define IDLE_TICKS 512 /* half a minute: the first packet after it looks after both directions */
#define TOUCH_TICKS 64 /* four seconds: how seldom a packet looks at its flow's other direction */

#define barrier() asm volatile("" ::: "memory")

static __always_inline __u64 volatile_word(const void *at)
{
	return *(const volatile __u64 *)at;
}

/* The coarse clock costs a call, more than all the rest of a look-up; jiffies cost a load. It moves
 * only when they do, so it is asked once for each of them, by whichever CPU is first.
 */
static __always_inline __u32 ticks_now(void)
{
	int zero = 0;
	__u64 *clock = clocks.lookup(&zero);
	__u64 jiffies = bpf_jiffies64(), known;

	if (!clock)
		return 0;
	known = volatile_word(clock);
	if (likely((__u32)(known >> 32) == (__u32)jiffies))
		return known;
	known = jiffies << 32 | (__u32)(bpf_ktime_get_coarse_ns() >> TICK_SHIFT);
	*(volatile __u64 *)clock = known;
	return known;
}

static __always_inline int has_passed(__u32 moment, __u32 now)
{
	return (__s32)(moment - now) <= 0;
}

/* Ticks that a state lasts. */
static __always_inline __u32 timeout_of(const struct settings *own, __u64 state)
{
	/* The compiler may know that there is no such state, the verifier does not. */
	asm volatile("%0 &= 15" : "+r"(state));
	return own->timeout[state];
}

/* The same of a place in its bucket: that of Linux 6.1 forgets what a number was compared with
 * once it is fetched again from where the compiler had put it meanwhile.
 */
static __always_inline struct flow *flow_of(struct flow_bucket *bucket, __u64 way)
{
	asm volatile("%0 &= %1" : "+r"(way) : "i"(FLOW_WAYS - 1));
	return &bucket->flow[way];
}

static __always_inline int is_half_open(__u8 state)
{
	return state == FLOW_TCP_OPENING || state == FLOW_TCP_ANSWERED || state == FLOW_UDP_ASKED ||
	       state == FLOW_UDP_ANSWERED;
}

/* What can be forged without seeing an answer, and so makes room where there is none. */
static __always_inline int is_forgeable(__u8 state)
{
	return is_half_open(state) || state == FLOW_UDP_FRESH;
}

static __always_inline int is_closed(__u8 state)
{
	return state == FLOW_TCP_TIME_WAIT || state == FLOW_TCP_RESET;
}

static __always_inline int is_protected(__u8 state)
{
	return state == FLOW_TCP_ESTABLISHED || state == FLOW_TCP_CLOSING ||
	       state == FLOW_UDP_ESTABLISHED;
}

/* --------------------------------------------------------------------- looking */

/* Where a key belongs, and what stands there. `flow` 0: nothing of that key. */
struct place {
	struct flow *flow;
	__u32 index; /* bucket * FLOW_WAYS + way */
	__u32 bucket;
	__u32 home;
	__u32 is_old; /* it stands in the table before this one */
};

static __always_inline __u64 word_of_addresses(const struct flow_key *key)
{
	return *(const __u64 *)key;
}

/* Ports, protocol and direction; in the table's entries the uppermost 16 bits are the version. */
static __always_inline __u64 word_of_ports(const struct flow_key *key)
{
	return *((const __u64 *)key + 1);
}

#define VERSION_SHIFT 48
#define IS_BEING_WRITTEN(word) ((word) >> VERSION_SHIFT & 1)
#define SAME_BUT_VERSION(one, other) ((((one) ^ (other)) << 16) == 0)

static __always_inline __u64 entry_word(const struct flow *flow)
{
	return volatile_word((const void *)flow + sizeof(__u64));
}

static __always_inline int has_key(const struct flow *flow, const struct flow_key *key)
{
	return volatile_word(flow) == word_of_addresses(key) &&
	       SAME_BUT_VERSION(entry_word(flow), word_of_ports(key));
}

static __always_inline __u64 table_hash(const struct flow_key *key, __u64 seed)
{
	__u64 value = word_of_addresses(key) ^ seed;

	value *= 0xbf58476d1ce4e5b9ULL;
	value = (value ^ value >> 32 ^ word_of_ports(key)) * 0x94d049bb133111ebULL;
	value ^= seed >> 32 ^ value >> 29;
	value *= 0x9e3779b97f4a7c15ULL;
	return value ^ value >> 32;
}

static __always_inline struct flow *find_in(struct flow_bucket *bucket, const struct flow_key *key,
					    struct place *place)
{
#pragma unroll
	for (int i = 0; i < FLOW_WAYS; i++) {
		__u32 way = (place->home + i) % FLOW_WAYS;
		struct flow *flow = &bucket->flow[way];

		if (has_key(flow, key)) {
			place->index = place->bucket * FLOW_WAYS + way;
			return flow;
		}
	}
	return 0;
}

static __always_inline void place_of_hash(struct place *place, __u64 hash, __u32 buckets)
{
	place->bucket = (hash >> 32) * buckets >> 32;
	place->home = (__u32)hash % FLOW_WAYS;
}

/* Where a new entry of that key belongs. */
static __always_inline struct place place_of(const struct flow_key *key, const struct settings *own)
{
	struct place place = {};

	place_of_hash(&place, table_hash(key, own->flow_seed), FLOW_BUCKETS);
	return place;
}

static __always_inline struct place find_flow(const struct flow_key *key,
					      const struct settings *own)
{
	__u64 hash = table_hash(key, own->flow_seed);
	struct place place = {};
	struct flow_bucket *bucket;

	place_of_hash(&place, hash, FLOW_BUCKETS);
	bucket = bucket_of(place.bucket);
	if (bucket)
		place.flow = find_in(bucket, key, &place);
#if OLD_FLOW_BUCKETS > 1
	if (unlikely(!place.flow && own->chained)) {
		struct place old = { .is_old = 1 };

		place_of_hash(&old, hash, OLD_FLOW_BUCKETS);
		bucket = old_bucket_of(old.bucket);
		if (bucket)
			old.flow = find_in(bucket, key, &old);
		if (old.flow)
			return old;
	}
#endif
	return place;
}

/* Copies the rewrite of an entry whose key was found; -1: it is not that entry any more. A change
 * of the key changes the version, which stands in the same word as the ports.
 */
static __always_inline int read_rewrite(const struct flow *flow, const struct flow_key *key,
					struct rewrite *to)
{
	__u64 *copy = (__u64 *)to;
	__u64 word = entry_word(flow);

	barrier();
	copy[0] = volatile_word(&flow->saddr);
	copy[1] = volatile_word((const void *)&flow->saddr + sizeof(__u64));
	barrier();
	return IS_BEING_WRITTEN(word) || volatile_word(flow) != word_of_addresses(key) ||
			       !SAME_BUT_VERSION(word, word_of_ports(key)) ||
			       entry_word(flow) != word
		       ? -1
		       : 0;
}

static __always_inline struct flow *flow_at(__u32 index, __u32 is_old)
{
	int number = index / FLOW_WAYS;
	struct flow_bucket *bucket;

#if OLD_FLOW_BUCKETS > 1
	if (unlikely(is_old)) {
		bucket = old_bucket_of(number);
		return bucket ? &bucket->flow[index % FLOW_WAYS] : 0;
	}
#endif
	bucket = bucket_of(number);
	return bucket ? &bucket->flow[index % FLOW_WAYS] : 0;
}

/* The entry of the other direction, found by its index and known by its key and by where it leads;
 * 0: it has gone, so this flow has too.
 */
static __always_inline struct flow *other_direction(const struct place *mine,
						    const struct flow_key *key,
						    const struct rewrite *to)
{
	struct flow *other = flow_at(mine->flow->other, mine->is_old);
	struct flow_key other_key = opposite_key(key, to);

	if (!other || !has_key(other, &other_key) || other->saddr != key->daddr ||
	    other->daddr != key->saddr || other->sport != key->dport || other->dport != key->sport)
		return 0;
	return other;
}

/* --------------------------------------------------------------------- writing */

static __always_inline struct flow_lock *lock_of(__u32 index)
{
	int number = index / FLOW_WAYS % FLOW_LOCKS;

	return flow_locks.lookup(&number);
}

/* Between these two an entry is nobody's; the caller holds the lock of its bucket. */
static __always_inline void begin_writing(struct flow *flow)
{
	*(volatile __u16 *)&flow->key.version |= 1;
	barrier();
}

static __always_inline void end_writing(struct flow *flow)
{
	barrier();
	*(volatile __u16 *)&flow->key.version += 1;
}

/* The direction of the request, as it is. */
static __always_inline void write_request(struct flow *flow, const struct flow *request)
{
	flow->key.saddr = request->key.saddr;
	flow->key.daddr = request->key.daddr;
	flow->key.sport = request->key.sport;
	flow->key.dport = request->key.dport;
	flow->key.direction = DIRECTION_REQUEST;
	flow->saddr = request->saddr;
	flow->daddr = request->daddr;
	flow->sport = request->sport;
	flow->dport = request->dport;
	flow->other = request->other;
	flow->end = request->end;
	flow->acked = request->acked;
	flow->begin = request->begin;
}

/* The direction of the reply: it undoes what the request's does. */
static __always_inline void write_reply(struct flow *flow, const struct flow *request)
{
	flow->key.saddr = request->daddr;
	flow->key.daddr = request->saddr;
	flow->key.sport = request->dport;
	flow->key.dport = request->sport;
	flow->key.direction = DIRECTION_REPLY;
	flow->saddr = request->key.daddr;
	flow->daddr = request->key.saddr;
	flow->sport = request->key.dport;
	flow->dport = request->key.sport;
	flow->other = ~0U; /* filled in once the request has its place */
	flow->end = flow->acked = flow->begin = 0;
}

static __always_inline void write_entry(struct flow *flow, const struct flow *request,
					int direction)
{
	begin_writing(flow);
	if (direction == DIRECTION_REQUEST)
		write_request(flow, request);
	else
		write_reply(flow, request);
	flow->key.protocol = request->key.protocol;
	flow->seat = request->seat;
	flow->state = request->state;
	flow->flags = 0;
	flow->deadline = request->deadline;
	flow->edge = 0;
	flow->scale = request->scale;
	flow->reach = 0;
	__builtin_memcpy(flow->last_hop, request->last_hop, ETH_ALEN);
	end_writing(flow);
}

/* What becomes of a wish for a place. */
enum claim {
	CLAIM_GRANTED,
	CLAIM_TAKEN, /* that key is alive and stays */
	CLAIM_SOFT,  /* that key is half-open: it can be taken if need be */
	CLAIM_FULL,  /* all places of the bucket are held by what is alive and established */
};

/* For how many ticks an entry has been in its state without being renewed. */
static __always_inline __u32 age_of(const struct flow *flow, const struct settings *own, __u32 now)
{
	return now - (flow->deadline - timeout_of(own, flow->state));
}

static __always_inline int is_takeable(const struct flow *flow, __u32 now)
{
	return flow->state == FLOW_FREE || has_passed(flow->deadline + GRACE_TICKS, now);
}

/* Whether the entry that has the very key wanted may make room. `force`: also if it is half-open.
 */
static __always_inline enum claim judge_holder(const struct flow *holder, __u32 now, int force)
{
	if (is_takeable(holder, now))
		return CLAIM_GRANTED;
	if (!is_forgeable(holder->state))
		return CLAIM_TAKEN;
	return force ? CLAIM_GRANTED : CLAIM_SOFT;
}

#define GOES_FIRST (1U << 31)

static __always_inline void look_at(const struct flow *flow, __u32 way, const struct settings *own,
				    __u32 now, struct flow_offer *offer)
{
	__u32 age;

	if (is_takeable(flow, now)) {
		if (offer->free == FLOW_WAYS)
			offer->free = way;
		return;
	}
	if (!is_forgeable(flow->state))
		return;
	age = age_of(flow, own, now) + 1;
	if (is_half_open(flow->state)) {
		age |= GOES_FIRST;
		offer->half_count++;
	}
	if (age > offer->half_age) {
		offer->half = way;
		offer->half_age = age;
	}
}

static __always_inline __u32 best_way(const struct flow_offer *offer)
{
	if (offer->half_count >= HALF_OPEN_WAYS)
		return offer->half;
	if (offer->free != FLOW_WAYS)
		return offer->free;
	return offer->half;
}

/* Looks for the key in all ways; on the way it collects what else could be had, but not
 * the place that the flow's other direction has just taken. The caller holds the lock.
 */
static __always_inline void survey(const struct flow_bucket *bucket, const struct place *place,
				   const struct flow_key *key, const struct settings *own,
				   __u32 now, struct draft *draft)
{
	struct flow_offer *offer = &draft->offer;

	*offer = (struct flow_offer){ FLOW_WAYS, FLOW_WAYS, 0, 0 };
	draft->holder = FLOW_WAYS;
#pragma unroll
	for (int i = 0; i < FLOW_WAYS; i++) {
		__u32 way = (place->home + i) % FLOW_WAYS;

		if (has_key(&bucket->flow[way], key))
			draft->holder = way;
		else if (place->bucket * FLOW_WAYS + way == draft->request.other)
			offer->half_count++; /* the other half of this very flow */
		else
			look_at(&bucket->flow[way], way, own, now, offer);
	}
}

#define CLAIM_ONLY_FREE 2 /* instead of `force`: takes from nobody but the dead */

/* A key that comes back to its own place has not asked whether the half-open ones have had their
 * share: then the oldest of them goes.
 */
static __always_inline void keep_to_the_share(struct flow_bucket *bucket,
					      const struct flow_offer *offer)
{
	if (offer->half_count >= HALF_OPEN_WAYS && offer->half < FLOW_WAYS)
		bucket->flow[offer->half % FLOW_WAYS].state = FLOW_FREE;
}

/* Enters a direction of the draft's flow under `key` at `place` (whose bucket and home are known),
 * if it can be had. On CLAIM_GRANTED the place's index and flow are the entry's, and the draft says
 * for how long the key had not been used.
 */
static __always_inline enum claim claim_place(struct place *place, const struct flow_key *key,
					      struct draft *draft, int direction,
					      const struct settings *own, __u32 now, int force)
{
	struct flow_bucket *bucket = bucket_of(place->bucket);
	struct flow_lock *lock = lock_of(place->bucket * FLOW_WAYS);
	enum claim claim = CLAIM_GRANTED;
	struct flow *flow;
	__u32 way;

	if (!bucket || !lock)
		return CLAIM_FULL;
	bpf_spin_lock(&lock->lock);
	survey(bucket, place, key, own, now, draft);
	way = draft->holder;
	if (way < FLOW_WAYS) {
		flow = flow_of(bucket, way);
		claim = judge_holder(flow, now, force == 1);
		draft->rested = flow->state == FLOW_FREE ? 0 : age_of(flow, own, now);
		if (is_takeable(flow, now) && force != CLAIM_ONLY_FREE)
			keep_to_the_share(bucket, &draft->offer);
	} else {
		draft->rested = 0;
		way = force == CLAIM_ONLY_FREE ? draft->offer.free : best_way(&draft->offer);
	}
	if (way >= FLOW_WAYS) {
		claim = CLAIM_FULL;
	} else if (claim == CLAIM_GRANTED) {
		flow = flow_of(bucket, way);
		write_entry(flow, &draft->request, direction);
		place->flow = flow;
		place->index = place->bucket * FLOW_WAYS + way;
	}
	bpf_spin_unlock(&lock->lock);
	return claim;
}

/* Whether the client's packets still come from where they came before. Of a client in a VLAN that
 * stands elsewhere (`vlan_clients`), and nothing here.
 */
static __always_inline int comes_from(const struct packet *packet, const struct flow *flow)
{
	const __u16 *source = (const __u16 *)packet->ethernet->h_source;
	const __u16 *known = (const __u16 *)flow->last_hop;

	if (unlikely(packet->is_tagged))
		return !is_known(flow->last_hop);
	return source[0] == known[0] && source[1] == known[1] && source[2] == known[2];
}

/* Where the client's packets come from is where replies go; nobody but the client's packets says.
 */
static __always_inline void note_last_hop(const struct packet *packet, struct flow *flow)
{
	if (packet->key.direction != DIRECTION_REQUEST)
		return;
	if (packet->is_tagged)
		__builtin_memset(flow->last_hop, 0, ETH_ALEN);
	else
		__builtin_memcpy(flow->last_hop, packet->ethernet->h_source, ETH_ALEN);
}

/* A change of one entry that may have gone to somebody else meanwhile: made only if its key and
 * version are still those of `word`. Returns whether it was.
 */
static __always_inline int change_entry(const struct packet *packet, struct flow *flow,
					struct flow_lock *lock, __u64 word, __u8 state,
					__u32 deadline)
{
	int is_same;

	bpf_spin_lock(&lock->lock);
	is_same = entry_word(flow) == word;
	if (is_same) {
		flow->state = state;
		flow->deadline = deadline;
		note_last_hop(packet, flow);
	}
	bpf_spin_unlock(&lock->lock);
	return is_same;
}

/* Gives up an entry whose other half has gone: it would keep its key from being used. */
static __always_inline void forget_entry(const struct packet *packet, const struct place *place,
					 __u32 now)
{
	struct flow_lock *lock = lock_of(place->index);

	if (lock)
		change_entry(packet, place->flow, lock, entry_word(place->flow), FLOW_FREE, now);
}

/* Both directions of a flow, with the locks of their buckets, fetched before any lock is taken: no
 * helper may be called under one.
 */
struct pair {
	struct flow *request;
	struct flow *reply;
	struct flow_lock *request_lock;
	struct flow_lock *reply_lock;
	__u64 request_word; /* key and version as they were seen */
	__u64 reply_word;
	struct flow *mine; /* that of the packet's direction */
	struct flow *theirs;
};

/* Fetches the pair of an entry that was found; -1: its other half is gone, and so is the flow. */
static __always_inline int fetch_pair(const struct packet *packet, const struct place *place,
				      const struct rewrite *to, struct pair *pair)
{
	struct flow *mine = place->flow, *other = other_direction(place, &packet->key, to);
	int is_request = packet->key.direction == DIRECTION_REQUEST;
	__u32 other_index;

	if (!other)
		return -1;
	other_index = mine->other;
	pair->mine = mine;
	pair->theirs = other;
	pair->request = is_request ? mine : other;
	pair->reply = is_request ? other : mine;
	pair->request_lock = lock_of(is_request ? place->index : other_index);
	pair->reply_lock = lock_of(is_request ? other_index : place->index);
	pair->request_word = entry_word(pair->request);
	pair->reply_word = entry_word(pair->reply);
	return !pair->request_lock || !pair->reply_lock || IS_BEING_WRITTEN(pair->request_word) ||
			       IS_BEING_WRITTEN(pair->reply_word)
		       ? -1
		       : 0;
}

/* Both halves to a new state, reply first, as they were entered. What is protected afterwards was
 * verified under its own bucket's lock. -1: one of them had gone, and then both have.
 */
static __always_inline int change_pair(const struct packet *packet, struct pair *pair, __u8 state,
				       __u32 deadline)
{
	if (!change_entry(packet, pair->reply, pair->reply_lock, pair->reply_word, state, deadline))
		return -1;
	if (change_entry(packet, pair->request, pair->request_lock, pair->request_word, state,
			 deadline))
		return 0;
	change_entry(packet, pair->reply, pair->reply_lock, pair->reply_word, FLOW_FREE, 0);
	return -1;
}

/* The same state for longer. Deadlines are whole ticks: in each, the first packet renews them. */
static __always_inline void renew_pair(const struct packet *packet, struct pair *pair, __u8 state,
				       __u32 deadline)
{
	if (pair->mine->deadline != deadline ||
	    (packet->key.direction == DIRECTION_REQUEST && !comes_from(packet, pair->mine)))
		change_pair(packet, pair, state, deadline);
}

#endif
