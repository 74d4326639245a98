/* A model of who may claim a virtual IP: three LBs, their election, the leader's lease, and the
 * grants that pass it on. See README.md beside this file for which line is which line of the code.
 *
 * Time is counted in ticks of true time. A clock that drifts is a timer of which the model draws
 * how long it really lasts: a promise of PROMISE ticks may be over one tick early (a fast clock),
 * a lease of LEASE ticks one tick late (a slow one). What the code checks of its configuration,
 * lease * (1 + drift) <= promise * (1 - drift), is here LEASE + 1 <= PROMISE - 1.
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

#define PROMISE 3
#ifdef PROMISE_TOO_SHORT
#define LEASE 2
#else
#define LEASE 1
#endif
#define LONGEST (LEASE + 1)
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
	unsigned asked_ago : 2;   /* ticks since this follower asked, up to LONGEST */
	bool asked;
	unsigned held : 2;        /* what is left of a granted lease */
};

typedef Beat { bool there; unsigned term : 2; unsigned acc_term : 2; unsigned acc_epoch : 2;
	unsigned owner : 2 };
typedef Ack { bool there; unsigned term : 2; bool has_table };
typedef Grant { bool there; unsigned term : 2; unsigned left : 2 };
typedef Release { bool there; unsigned term : 2 };
typedef Go { bool there; unsigned term : 2 };

Lb lb[LBS];
Beat beats[9];
Ack acks[9];
Grant grants[9];
Release releases[9];
Go gos[9];
unsigned crashes : 2;
unsigned handovers : 2;
unsigned changes : 2;

#define BIT(i) (1 << (i))
#define MAJORITY(set) ((set) == 3 || (set) == 5 || (set) == 6 || (set) == 7)
#define TO(i, j) ((i) * LBS + (j))
#define OTHER(i, n) (((i) + (n)) % LBS)

#define AS_NEW(term_a, epoch_a, term_b, epoch_b) \
	((term_a) > (term_b) || ((term_a) == (term_b) && (epoch_a) >= (epoch_b)))

/* Who answers for the VIP at this instant: what the programs look up in the kernel. */
#define LEADS(i) (lb[i].role == LEADER && lb[i].lease > 0)
#define CLAIMS(i) (lb[i].held > 0 || \
	(LEADS(i) && lb[i].committed && lb[i].acc_owner == (i)))

inline follow(i) {
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

/* What is under way to LB i. Messages that would change nothing are taken away at once: there are
 * fewer states then, and none that matters is lost. */
inline forget(i) {
	for (n : 1 .. 2) {
		k = TO(OTHER(i, n), i);
		beats[k].there = false; beats[k].term = 0; beats[k].acc_term = 0;
		beats[k].acc_epoch = 0; beats[k].owner = 0;
		acks[k].there = false; acks[k].term = 0; acks[k].has_table = false;
		grants[k].there = false; grants[k].term = 0; grants[k].left = 0;
		releases[k].there = false; releases[k].term = 0;
		gos[k].there = false; gos[k].term = 0
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
	lb[i].role = CANDIDATE;
	lb[i].term++;
	lb[i].vote = i;
	lb[i].leader = NOBODY;
	lb[i].resigned = is_chosen;
	lb[i].chooser = by
}

/* Candidate i asks j and has its answer. In one step: a vote that was given binds j for the rest
 * of the term, so it makes no difference when the answer arrives. */
inline ask_for_vote(i, j) {
	follows = lb[i].resigned && lb[i].chooser == lb[j].leader && lb[j].role != LEADER &&
		lb[i].term == lb[j].term + 1;
	if
	:: lb[i].term < lb[j].term -> adopt(i, lb[j].term)
	:: lb[i].term >= lb[j].term && (follows || MAY_VOTE(j)) ->
		if
		:: lb[i].term > lb[j].term -> adopt(j, lb[i].term)
		:: else
		fi;
		if
		:: lb[j].role == FOLLOWER && (lb[j].vote == NOBODY || lb[j].vote == i) &&
		   AS_NEW(lb[i].acc_term, lb[i].acc_epoch, lb[j].acc_term, lb[j].acc_epoch) ->
			lb[j].vote = i;
			lead(i)
		:: else
		fi
	:: else
	fi
}

/* Two of three have elected it: its own table is the first proposal of the term. */
inline lead(i) {
	lb[i].role = LEADER;
	lb[i].leader = i;
	lb[i].acc_term = lb[i].term;
	lb[i].acc_epoch = 0;
	lb[i].holds = BIT(i);
	lb[i].held = 0;
	lb[i].asked = false;
#ifndef NO_WAIT_AFTER_HANDOVER
	if
	:: lb[i].resigned -> lb[i].unknown = LONGEST
	:: else
	fi;
#endif
	lb[i].resigned = false;
	lb[i].chooser = 0
}

/* ------------------------------------------------------------------ beats and the leader's lease */

inline send_beats(i) {
	lb[i].beaten = true;
	if
	:: lb[i].beat_left = LEASE
	:: lb[i].beat_left = LONGEST
	fi;
	for (n : 1 .. 2) {
		k = TO(i, OTHER(i, n));
		beats[k].there = true;
		beats[k].term = lb[i].term;
		beats[k].acc_term = lb[i].acc_term;
		beats[k].acc_epoch = lb[i].acc_epoch;
		beats[k].owner = lb[i].acc_owner;
		k = TO(OTHER(i, n), i);
		acks[k].there = false; acks[k].term = 0; acks[k].has_table = false
	}
}

inline beat(i, j) {
	k = TO(i, j);
	of_term = beats[k].term; of_acc_term = beats[k].acc_term; of_epoch = beats[k].acc_epoch;
	owner = beats[k].owner;
	beats[k].there = false; beats[k].term = 0; beats[k].acc_term = 0; beats[k].acc_epoch = 0;
	beats[k].owner = 0;
	if
	:: of_term < lb[j].term || (of_term == lb[j].term && lb[j].role == LEADER)
	:: else ->
		if
		:: of_term > lb[j].term -> adopt(j, of_term)
		:: else
		fi;
		lb[j].role = FOLLOWER;
		lb[j].leader = i;
#ifndef NO_PROMISE
		if
		:: lb[j].promised = PROMISE
		:: lb[j].promised < PROMISE -> lb[j].promised = PROMISE - 1
		fi;
#endif
		if
		:: AS_NEW(of_acc_term, of_epoch, lb[j].acc_term, lb[j].acc_epoch) ->
			lb[j].acc_term = of_acc_term;
			lb[j].acc_epoch = of_epoch;
			lb[j].acc_owner = owner
		:: else
		fi;
		k = TO(j, i);
		acks[k].there = true;
		acks[k].term = lb[j].term;
		acks[k].has_table = lb[j].acc_term == of_acc_term && lb[j].acc_epoch == of_epoch;
		lb[j].asked = true;
		lb[j].asked_ago = 0;
		k = TO(i, j);
		grants[k].there = false; grants[k].term = 0; grants[k].left = 0
	fi;
	of_term = 0; of_acc_term = 0; of_epoch = 0; owner = 0
}

inline ack(j, i) {
	k = TO(j, i);
	if
	:: acks[k].term > lb[i].term -> adopt(i, acks[k].term)
	:: acks[k].term == lb[i].term && lb[i].role == LEADER ->
#ifdef LEASE_FROM_ANSWER
		lb[i].lease = LEASE;
#else
		if
		:: lb[i].beat_left > lb[i].lease -> lb[i].lease = lb[i].beat_left
		:: else
		fi;
#endif
		if
		:: acks[k].has_table -> lb[i].holds = lb[i].holds | BIT(j)
		:: else
		fi;
		if
		:: MAJORITY(lb[i].holds) -> lb[i].committed = true
		:: else
		fi;
		grant(i, j)
	:: else
	fi;
	acks[k].there = false; acks[k].term = 0; acks[k].has_table = false
}

/* ------------------------------------------------------------------ the VIP */

inline grant(i, j) {
	if
	:: lb[i].committed && lb[i].acc_owner == j && lb[i].lease > 0 ->
		lb[i].granted = lb[i].lease;
		grants[TO(i, j)].there = true;
		grants[TO(i, j)].term = lb[i].term;
		grants[TO(i, j)].left = lb[i].lease
	:: else
	fi
}

inline take_grant(i, j) {
	k = TO(i, j);
#ifdef GRANT_FROM_RECEIPT
	left = grants[k].left;
#else
	left = (grants[k].left > lb[j].asked_ago -> grants[k].left - lb[j].asked_ago : 0);
#endif
	if
	:: grants[k].term == lb[j].term && lb[j].asked && lb[j].role == FOLLOWER && left > lb[j].held ->
		lb[j].held = left
	:: else
	fi;
	grants[k].there = false; grants[k].term = 0; grants[k].left = 0
}

/* An LB that is not eligible any more claims nothing, and says so to its leader. */
inline give_up(i) {
	lb[i].asked = false;
	lb[i].asked_ago = 0;
	if
	:: lb[i].leader != NOBODY ->
		releases[TO(i, lb[i].leader)].there = true;
		releases[TO(i, lb[i].leader)].term = lb[i].term;
		/* It gave up what was asked up to here, so what is granted to that counts for nothing. */
		grants[TO(lb[i].leader, i)].there = false;
		acks[TO(i, lb[i].leader)].there = false
	:: else
	fi;
#ifndef RELEASE_BEFORE_CLAIM_ENDS
	lb[i].held = 0
#endif
}

inline release(j, i) {
	k = TO(j, i);
	if
	:: releases[k].term == lb[i].term && lb[i].role == LEADER && lb[i].acc_owner == j ->
		lb[i].granted = 0
	:: else
	fi;
	releases[k].there = false; releases[k].term = 0
}

#ifdef REASSIGN_EARLY
#define IS_FREE(i) true
#else
#define IS_FREE(i) (lb[i].granted == 0 && lb[i].unknown == 0)
#endif

/* The leader proposes another owner, once nobody can hold the VIP any more. */
inline reassign(i, j) {
	changes++;
	lb[i].acc_epoch++;
	lb[i].acc_owner = j;
	lb[i].committed = false;
	lb[i].holds = BIT(i);
	for (n : 1 .. 2) { k = TO(OTHER(i, n), i);
		acks[k].there = false; acks[k].term = 0; acks[k].has_table = false }
}

/* ------------------------------------------------------------------ handover, crash, time */

inline hand_over(i, j) {
	handovers++;
#ifdef GO_UNDER_LEASE
	gos[TO(i, j)].there = true;
	gos[TO(i, j)].term = lb[i].term
#else
	follow(i);
	lb[i].leader = i;
	gos[TO(i, j)].there = true;
	gos[TO(i, j)].term = lb[i].term
#endif
}

inline chosen(i, j) {
	if
	:: gos[TO(i, j)].term == lb[j].term && lb[j].leader == i && lb[j].role == FOLLOWER &&
	   lb[j].term < TERMS -> stand(j, true, i)
	:: else
	fi;
	gos[TO(i, j)].there = false; gos[TO(i, j)].term = 0
}

/* It is killed and starts again. Claims that are in the kernel outlive it. */
inline crash(i) {
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
	lb[i].promised = PROMISE - 1;
#endif
#ifdef VOTE_NOT_STORED
	lb[i].vote = NOBODY;
#endif
	forget(i)
}

#define LESS(timer) timer = (timer > 0 -> timer - 1 : 0)

inline tick() {
	for (m : 0 .. 2) {
		lb[m].beaten = false;
		LESS(lb[m].promised);
		LESS(lb[m].beat_left);
		LESS(lb[m].lease);
		LESS(lb[m].granted);
		LESS(lb[m].unknown);
		LESS(lb[m].held);
		lb[m].asked_ago = (lb[m].asked && lb[m].asked_ago < LONGEST ->
			lb[m].asked_ago + 1 : lb[m].asked_ago);
		for (n : 1 .. 2) {
			k = TO(OTHER(m, n), m);
			if
			:: grants[k].there && grants[k].left <= lb[m].asked_ago ->
				grants[k].there = false; grants[k].term = 0; grants[k].left = 0
			:: else
			fi
		}
	}
}

/* ------------------------------------------------------------------ all that can happen */

#define SETTLED(i) (lb[i].role == LEADER && lb[i].committed)

inline step(i, j) {
	if
	:: lb[i].role == CANDIDATE -> ask_for_vote(i, j)
	:: beats[TO(j, i)].there -> beat(j, i)
	:: acks[TO(j, i)].there -> ack(j, i)
	:: grants[TO(j, i)].there -> take_grant(j, i)
	:: releases[TO(j, i)].there -> release(j, i)
	:: gos[TO(j, i)].there -> chosen(j, i)
	:: lb[i].role != LEADER && MAY_VOTE(i) && lb[i].term < TERMS -> stand(i, false, 0)
	:: lb[i].role == LEADER && !lb[i].beaten -> send_beats(i)
	:: SETTLED(i) && IS_FREE(i) && lb[i].lease > 0 && changes < EPOCHS && lb[i].acc_owner != j
		-> reassign(i, j)
	:: SETTLED(i) && IS_FREE(i) && lb[i].lease > 0 && changes < EPOCHS && lb[i].acc_owner != i
		-> reassign(i, i)
	:: lb[i].held > 0 -> give_up(i)
	:: SETTLED(i) && lb[i].lease > 0 && handovers < HANDOVERS -> hand_over(i, j)
	:: crashes < CRASHES -> crash(i)
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
	byte n, m, k, left, of_term, of_acc_term, of_epoch, owner;
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
	:: atomic { step(0, 1); check() }
	:: atomic { step(0, 2); check() }
	:: atomic { step(1, 0); check() }
	:: atomic { step(1, 2); check() }
	:: atomic { step(2, 0); check() }
	:: atomic { step(2, 1); check() }
	od
}
