/* A model of who may claim a virtual IP: three LBs, their election, the leader's lease, and the
 * grants that pass it on. README.md beside this file says which part of it is which of the code,
 * and what it leaves out.
 *
 * Time is counted in ticks of true time. Clocks drift, and what the code checks of its configuration
 * is lease * (1 + drift) <= promise * (1 - drift): so the longest that a lease lasts, LEASE ticks, is
 * at most the shortest that a promise does, PROMISE ticks. Longer promises would only forbid steps
 * that nobody has to take, and a shorter lease is one whose beat was longer on its way: so neither
 * needs to be drawn.
 *
 * A message lies in its place, one for each kind and each pair of LBs, until it is received, for
 * however long; a newer one of its kind overwrites it, and that is how messages are lost. So any
 * delay, any loss and any order among the kinds are in the model.
 *
 * Each step of an LB is atomic: it persists, claims and sends as one. The code does these in that
 * order, and what a crash between two of them leaves is a step with its messages lost.
 */

#define LBS 3
#ifndef TERMS
#define TERMS 3   /* terms there may be: 0, and the elections */
#endif
#ifndef EPOCHS
#define EPOCHS 2  /* times the owner changes, in all terms together */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef HANDOVERS
#define HANDOVERS 1
#endif

#ifndef PROMISE
#define PROMISE 2
#endif
#ifdef PROMISE_TOO_SHORT
#define LEASE (PROMISE + 1)
#else
#define LEASE PROMISE
#endif
#define NOBODY 3

#define FOLLOWER 0
#define CANDIDATE 1
#define LEADER 2

typedef Lb {
	/* On the disk. */
	unsigned term : 2;
	unsigned vote : 2;        /* for whom in this term, or NOBODY */
	unsigned acc_term : 2;    /* the version of the accepted table ... */
	unsigned acc_epoch : 2;
	unsigned acc_owner : 2;   /* ... and the VIP's owner by it */
	/* In memory. */
	unsigned role : 2;
	unsigned leader : 2;
	unsigned promised : 2;    /* ticks for which it elects nobody */
	bool resigned;            /* it stands because the leader chose it */
	unsigned chooser : 2;
	unsigned holds : 3;       /* who has the leader's table */
	unsigned beat_left : 2;   /* the lease that beat is good for, counted from when it went */
	bool beaten;              /* in this tick: again would be the same */
	unsigned lease : 2;       /* of this leader */
	bool committed;           /* the leader's table is committed, in this term */
	unsigned granted : 2;     /* what may be left of leases this leader has granted */
	unsigned unknown : 2;     /* ... or the leader before, which resigned */
	unsigned asked_ago : 2;   /* ticks since this follower asked, up to LEASE */
	bool asked;
	unsigned held : 2;        /* what is left of a granted lease */
};

/* What is under way from one LB to another. */
typedef Link {
	bool beat;
	unsigned beat_term : 2;
	unsigned beat_acc_term : 2;
	unsigned beat_acc_epoch : 2;
	unsigned beat_owner : 2;
	bool ack;
	unsigned ack_term : 2;
	bool ack_has_table;
	bool ack_is_void;         /* given up what it asked for, so no grant answers it */
	bool grant;
	unsigned grant_term : 2;
	unsigned grant_left : 2;
	bool release;
	bool go;
	unsigned go_term : 2
};

Lb lb[LBS];
Link link[6];
unsigned crashes : 2;
unsigned handovers : 2;
unsigned changes : 2;

#define BIT(i) (1 << (i))
#define MAJORITY(set) ((set) == 3 || (set) == 5 || (set) == 6 || (set) == 7)
#define TO(i, j) ((i) * 2 + ((j) + LBS - (i)) % LBS - 1)
#define OTHER(i, n) (((i) + (n)) % LBS)

#define AS_NEW(term_a, epoch_a, term_b, epoch_b) \
	((term_a) > (term_b) || ((term_a) == (term_b) && (epoch_a) >= (epoch_b)))

#define NO_BEAT(k) link[k].beat = false; link[k].beat_term = 0; link[k].beat_acc_term = 0; \
	link[k].beat_acc_epoch = 0; link[k].beat_owner = 0
#define NO_ACK(k) link[k].ack = false; link[k].ack_term = 0; link[k].ack_has_table = false; \
	link[k].ack_is_void = false
#define NO_GRANT(k) link[k].grant = false; link[k].grant_term = 0; link[k].grant_left = 0
#define NO_GO(k) link[k].go = false; link[k].go_term = 0

/* Who answers for the VIP at this instant: what the programs look up in the kernel. */
#define LEADS(i) (lb[i].role == LEADER && lb[i].lease > 0)
#define CLAIMS(i) (lb[i].held > 0 || \
	(LEADS(i) && lb[i].committed && lb[i].acc_owner == (i)))

/* Whether nobody can hold the VIP by what leader i, or the one before it, has granted. */
#ifdef REASSIGN_EARLY
#define IS_FREE(i) true
#else
#define IS_FREE(i) (lb[i].granted == 0 && lb[i].unknown == 0)
#endif

inline follow(i) {
#ifndef VOTE_AFTER_LEADING
	lb[i].promised = (lb[i].role == LEADER && lb[i].lease > lb[i].promised ->
		lb[i].lease : lb[i].promised);
#endif
	lb[i].role = FOLLOWER;
	lb[i].leader = NOBODY;
	lb[i].lease = 0;
	lb[i].beat_left = 0;
	lb[i].beaten = false;
	lb[i].holds = 0;
	lb[i].committed = false;
	lb[i].granted = 0;
	lb[i].unknown = 0;
	lb[i].resigned = false;
	lb[i].chooser = 0
}

/* What comes to LB i and would change nothing any more is taken away at once: there are fewer
 * states then. */
inline forget(i) {
	for (n : 1 .. 2) {
		k = TO(OTHER(i, n), i);
		if
		:: link[k].ack_term <= lb[i].term -> NO_ACK(k)
		:: else
		fi;
		if
		:: link[k].go_term < lb[i].term -> NO_GO(k)
		:: else
		fi;
		NO_GRANT(k)
	}
}

inline adopt(i, new_term) {
	lb[i].term = new_term;
	lb[i].vote = NOBODY;
	follow(i);
	forget(i)
}

/* ------------------------------------------------------------------ election */

#ifdef VOTE_UNDER_OWN_LEASE
#define MAY_VOTE(i) (lb[i].promised == 0)
#else
#define MAY_VOTE(i) (lb[i].promised == 0 && lb[i].lease == 0)
#endif

inline stand(i, is_chosen, by) {
	printf("lb %d stands in term %d\n", i, lb[i].term + 1);
	lb[i].role = CANDIDATE;
	lb[i].term++;
	lb[i].vote = i;
	lb[i].leader = NOBODY;
	lb[i].resigned = is_chosen;
	lb[i].chooser = by
}

/* Candidate i asks j and has its answer. In one step: a vote that was given binds j for the rest
 * of the term, so it makes no difference when the answer arrives. A voter that knows a newer table
 * sends it along. */
inline ask_for_vote(i, j) {
	printf("lb %d asks %d for its vote\n", i, j);
	follows = lb[i].resigned && lb[i].chooser == lb[j].leader && lb[i].term == lb[j].term + 1;
	if
	:: lb[i].term < lb[j].term -> adopt(i, lb[j].term)
	:: lb[i].term >= lb[j].term && (follows || MAY_VOTE(j)) ->
		if
		:: lb[i].term > lb[j].term -> adopt(j, lb[i].term)
		:: else
		fi;
		if
		:: !AS_NEW(lb[i].acc_term, lb[i].acc_epoch, lb[j].acc_term, lb[j].acc_epoch) ->
			lb[i].acc_term = lb[j].acc_term;
			lb[i].acc_epoch = lb[j].acc_epoch;
			lb[i].acc_owner = lb[j].acc_owner
		:: else ->
			if
			:: lb[j].role == FOLLOWER && (lb[j].vote == NOBODY || lb[j].vote == i) ->
				lb[j].vote = i;
				lead(i)
			:: else
			fi
		fi
	:: else
	fi
}

/* Two of three have elected it: its own table is the first proposal of the term. If all leases of
 * before are over it may name another owner in it. */
inline lead(i) {
	printf("lb %d leads in term %d\n", i, lb[i].term);
	lb[i].role = LEADER;
	lb[i].leader = i;
	lb[i].acc_term = lb[i].term;
	lb[i].acc_epoch = 0;
	lb[i].holds = BIT(i);
	lb[i].held = 0;
	lb[i].asked = false;
	lb[i].asked_ago = 0;
#ifndef NO_WAIT_AFTER_HANDOVER
	if
	:: lb[i].resigned -> lb[i].unknown = LEASE
	:: else
	fi;
#endif
	lb[i].resigned = false;
	lb[i].chooser = 0;
	if
	:: true
	:: IS_FREE(i) && changes < EPOCHS && lb[i].acc_owner != i ->
		changes++;
		lb[i].acc_owner = i
	fi
}

/* ------------------------------------------------------------------ beats and the leader's lease */

inline send_beats(i) {
	printf("lb %d sends beats\n", i);
	lb[i].beaten = true;
	lb[i].beat_left = LEASE;
	for (n : 1 .. 2) {
		k = TO(i, OTHER(i, n));
		link[k].beat = true;
		link[k].beat_term = lb[i].term;
		link[k].beat_acc_term = lb[i].acc_term;
		link[k].beat_acc_epoch = lb[i].acc_epoch;
		link[k].beat_owner = lb[i].acc_owner;
		k = TO(OTHER(i, n), i);
		NO_ACK(k)
	}
}

inline take_beat(i, j) {
	printf("lb %d hears a beat of %d\n", j, i);
	k = TO(i, j);
	of_term = link[k].beat_term;
	of_acc_term = link[k].beat_acc_term;
	of_epoch = link[k].beat_acc_epoch;
	owner = link[k].beat_owner;
	NO_BEAT(k);
	if
	:: of_term < lb[j].term ->
		/* It says that there is a larger term, and no more. */
		k = TO(j, i);
		link[k].ack = true;
		link[k].ack_term = lb[j].term;
		link[k].ack_has_table = false;
		link[k].ack_is_void = true
	:: else ->
		if
		:: of_term > lb[j].term -> adopt(j, of_term)
		:: else
		fi;
		lb[j].role = FOLLOWER;
		lb[j].leader = i;
#ifndef NO_PROMISE
		lb[j].promised = PROMISE;
#endif
		if
		:: AS_NEW(of_acc_term, of_epoch, lb[j].acc_term, lb[j].acc_epoch) ->
			lb[j].acc_term = of_acc_term;
			lb[j].acc_epoch = of_epoch;
			lb[j].acc_owner = owner
		:: else
		fi;
		k = TO(j, i);
		link[k].ack = true;
		link[k].ack_term = lb[j].term;
		/* An answer says which table is stored, and the leader compares that with its own. */
		link[k].ack_has_table =
			lb[j].acc_term == lb[i].acc_term && lb[j].acc_epoch == lb[i].acc_epoch;
		link[k].ack_is_void = false;
		lb[j].asked = true;
		lb[j].asked_ago = 0;
		k = TO(i, j);
		NO_GRANT(k)
	fi;
	of_term = 0; of_acc_term = 0; of_epoch = 0; owner = 0
}

inline take_ack(j, i) {
	printf("lb %d hears an answer of %d\n", i, j);
	k = TO(j, i);
	if
	:: link[k].ack_term > lb[i].term -> adopt(i, link[k].ack_term)
	:: link[k].ack_term == lb[i].term && lb[i].role == LEADER ->
#ifdef LEASE_FROM_ANSWER
		lb[i].lease = LEASE;
#else
		if
		:: lb[i].beat_left > lb[i].lease -> lb[i].lease = lb[i].beat_left
		:: else
		fi;
#endif
		if
		:: link[k].ack_has_table -> lb[i].holds = lb[i].holds | BIT(j)
		:: else
		fi;
		if
		:: MAJORITY(lb[i].holds) -> lb[i].committed = true
		:: else
		fi;
		give_grant(i, j, k)
	:: else
	fi;
	NO_ACK(k)
}

/* ------------------------------------------------------------------ the VIP */

/* The leader answers ack k of j. What was given up before j asked is not what it grants now. */
inline give_grant(i, j, k) {
	if
	:: lb[i].committed && lb[i].acc_owner == j && lb[i].lease > 0 && !link[k].ack_is_void ->
		lb[i].granted = lb[i].lease;
		link[TO(i, j)].grant = true;
		link[TO(i, j)].grant_term = lb[i].term;
		link[TO(i, j)].grant_left = lb[i].lease;
#ifndef ANY_RELEASE_COUNTS
		link[k].release = false
#endif
	:: else
	fi
}

inline take_grant(i, j) {
	printf("lb %d hears a grant of %d\n", j, i);
	k = TO(i, j);
#ifdef GRANT_FROM_RECEIPT
	left = link[k].grant_left;
#else
	left = (link[k].grant_left > lb[j].asked_ago -> link[k].grant_left - lb[j].asked_ago : 0);
#endif
	if
	:: link[k].grant_term == lb[j].term && lb[j].asked && left > lb[j].held -> lb[j].held = left
	:: else
	fi;
	NO_GRANT(k)
}

/* An LB that is not eligible any more claims nothing, and says so to its leader. */
inline give_up(i) {
	printf("lb %d gives up\n", i);
	lb[i].asked = false;
	lb[i].asked_ago = 0;
	if
	:: lb[i].leader != NOBODY ->
		k = TO(i, lb[i].leader);
		link[k].release = true;
		/* What it asked up to here was given up too, though its answers are still promises. */
		link[k].ack_is_void = link[k].ack;
		k = TO(lb[i].leader, i);
		NO_GRANT(k)
	:: else
	fi;
#ifndef RELEASE_BEFORE_CLAIM_ENDS
	lb[i].held = 0
#endif
}

inline take_release(j, i) {
	printf("lb %d hears a release of %d\n", i, j);
	k = TO(j, i);
	if
	:: lb[i].role == LEADER && lb[i].acc_owner == j -> lb[i].granted = 0
	:: else
	fi;
	link[k].release = false
}

/* The leader proposes another owner, once nobody can hold the VIP any more. */
inline reassign(i, j) {
	printf("lb %d proposes %d as the owner\n", i, j);
	changes++;
	lb[i].acc_epoch++;
	lb[i].acc_owner = j;
	lb[i].committed = false;
	lb[i].holds = BIT(i);
	lb[i].beaten = false; /* the proposal goes at once */
	for (n : 1 .. 2) {
		k = TO(OTHER(i, n), i);
		link[k].ack_has_table = false
	}
}

/* ------------------------------------------------------------------ handover, crash, time */

inline hand_over(i, j) {
	printf("lb %d hands over to %d\n", i, j);
	handovers++;
#ifndef GO_UNDER_LEASE
	follow(i);
	forget(i);
	lb[i].leader = i;
#endif
	link[TO(i, j)].go = true;
	link[TO(i, j)].go_term = lb[i].term
}

inline chosen(i, j) {
	printf("lb %d hears that %d chose it\n", j, i);
	if
	:: link[TO(i, j)].go_term == lb[j].term && lb[j].leader == i && lb[j].role == FOLLOWER &&
	   lb[j].term < TERMS -> stand(j, true, i)
	:: else
	fi;
	k = TO(i, j);
	NO_GO(k)
}

/* It is killed and starts again. Claims that are in the kernel outlive it. */
inline crash(i) {
	printf("lb %d crashes\n", i);
	crashes++;
	if
	:: LEADS(i) && lb[i].committed && lb[i].acc_owner == i -> lb[i].held = lb[i].lease
	:: else
	fi;
	follow(i);
	lb[i].asked = false;
	lb[i].asked_ago = 0;
#ifdef NO_HOLD_AFTER_START
	lb[i].promised = 0;
#else
	lb[i].promised = PROMISE;
#endif
#ifdef VOTE_NOT_STORED
	lb[i].vote = NOBODY;
#endif
	forget(i)
}

#define LESS(timer) timer = (timer > 0 -> timer - 1 : 0)

inline tick() {
	printf("a tick\n");
	for (m : 0 .. 2) {
		lb[m].beaten = false;
		LESS(lb[m].promised);
		LESS(lb[m].beat_left);
		LESS(lb[m].lease);
		LESS(lb[m].granted);
		LESS(lb[m].unknown);
		LESS(lb[m].held);
		lb[m].asked_ago = (lb[m].asked && lb[m].asked_ago < LEASE ->
			lb[m].asked_ago + 1 : lb[m].asked_ago);
#ifndef GRANT_FROM_RECEIPT
		for (n : 1 .. 2) {
			k = TO(OTHER(m, n), m);
			if
			:: link[k].grant_left <= lb[m].asked_ago -> NO_GRANT(k)
			:: else
			fi
		}
#endif
	}
}

/* ------------------------------------------------------------------ all that can happen */

#define SETTLED(i) (lb[i].role == LEADER && lb[i].committed)

inline step(i, j) {
	if
	:: lb[i].role == CANDIDATE -> ask_for_vote(i, j)
	:: link[TO(j, i)].beat -> take_beat(j, i)
	:: link[TO(j, i)].ack -> take_ack(j, i)
	:: link[TO(j, i)].grant -> take_grant(j, i)
	:: link[TO(j, i)].release -> take_release(j, i)
	:: link[TO(j, i)].go -> chosen(j, i)
	:: lb[i].role != LEADER && MAY_VOTE(i) && lb[i].term < TERMS -> stand(i, false, 0)
	:: lb[i].role == LEADER && !lb[i].beaten -> send_beats(i)
	:: SETTLED(i) && IS_FREE(i) && changes < EPOCHS && lb[i].acc_owner != j -> reassign(i, j)
	:: SETTLED(i) && IS_FREE(i) && changes < EPOCHS && lb[i].acc_owner != i -> reassign(i, i)
	:: lb[i].held > 0 -> give_up(i)
	:: SETTLED(i) && lb[i].lease > 0 && handovers < HANDOVERS -> hand_over(i, j)
	:: crashes < CRASHES -> crash(i)
	:: else
	fi
}

#define TWO(p) ((p(0) && p(1)) || (p(0) && p(2)) || (p(1) && p(2)))

inline check() {
	n = 0; m = 0; k = 0; left = 0; follows = false;
	assert(!TWO(LEADS));
	assert(!TWO(CLAIMS))
}

/* Begins when LB 0 has just been elected in term 1. */
active proctype world() {
	byte one, other, n, m, k, left, of_term, of_acc_term, of_epoch, owner;
	bool follows;
	d_step {
		for (m : 0 .. 2) {
			lb[m].term = 1;
			lb[m].vote = 0;
			lb[m].leader = NOBODY;
			lb[m].acc_owner = 1
		}
		lead(0)
	};
	do
	:: d_step { tick(); check() }
	:: atomic {
		if
		:: one = 0; other = 1
		:: one = 0; other = 2
		:: one = 1; other = 0
		:: one = 1; other = 2
		:: one = 2; other = 0
		:: one = 2; other = 1
		fi;
		step(one, other);
		one = 0; other = 0;
		check()
	}
	od
}
