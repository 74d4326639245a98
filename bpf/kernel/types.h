/* SPDX-License-Identifier: GPL-2.0 */
/* What stands in the maps: the contract between the programs and services/dataplane.
 *
 * Every struct has explicit padding, so that a key never carries a stray byte into a hash and user
 * space, which takes the layouts from the compiler's own description, never has to guess one.
 * Addresses and ports are in network order wherever they are compared with a packet (__be16,
 * __be32), everything else is in the host's.
 *
 * Times are ticks of 2^26 nanoseconds (67 ms) of the monotonic clock, 32 bits of them. They are
 * compared by the sign of their difference, so they may lie four years apart.
 *
 * IPv6 will get maps of its own beside these: an IPv4 flow keeps its line of 64 bytes.
 */
#ifndef GALE_TYPES_H
#define GALE_TYPES_H

#define RING_SLOTS 65537 /* a prime, as Maglev needs it */
#define RING_LANES 4	 /* seats in one 8-byte entry of the ring */
#define RING_ENTRIES 16385
#define SERVICE_PLACES 32768 /* half of them are ever taken: 16,384 fronts */
#define MAX_SEATS 65536
#define MAX_ENDPOINTS 262144
#define NO_SEAT 0
#define TICK_SHIFT 26 /* nanoseconds to ticks */
#define TICKS_PER_SECOND 15

enum hook { HOOK_XDP_PUBLIC, HOOK_TC_PUBLIC, HOOK_TC_PRIVATE, HOOK_XDP_PRIVATE, HOOK_COUNT };

enum mode { MODE_L2 = 2, MODE_L3 = 3, MODE_L4 = 4 };

/* What is known of a flow; flow.h has the table of transitions. */
enum flow_state {
	FLOW_FREE,	      /* nobody has ever used this place */
	FLOW_TCP_OPENING,     /* half-open: the node has not answered the SYN */
	FLOW_TCP_ANSWERED,    /* half-open: it has; the client must acknowledge that */
	FLOW_TCP_ESTABLISHED, /* both sides have been heard */
	FLOW_TCP_CLOSING,     /* one side has sent a FIN, or both and not each is acknowledged */
	FLOW_TCP_TIME_WAIT,   /* both FINs are acknowledged */
	FLOW_TCP_RESET,	      /* ended by a RST that its receiver accepts */
	FLOW_UDP_ASKED,	      /* one-sided: the node has not answered */
	FLOW_UDP_ANSWERED,    /* one question, one answer: DNS is done by now */
	FLOW_UDP_ESTABLISHED, /* the client went on after an answer, for a second */
	FLOW_UDP_FRESH,	      /* it went on after an answer, but the first second is not over */
	FLOW_STATES,
};

/* One entry, index 0: what holds for this LB as a whole. */
struct settings {
	__u64 hash_seed;
	__u64 flow_seed; /* of the flow table's hash: drawn once, when the table is made */
	__u32 public_ifindex;
	__u32 private_ifindex;
	__u8 public_mac[6]; /* a frame that comes there is ours if it is addressed so */
	__u16 public_mtu;
	__u8 private_mac[6];
	__u16 padding;
	__be32 public_address; /* as whom this LB itself speaks there */
	__be32 private_address;
	__be32 outer_prefix;	    /* IP in IP: a /16 the outer sources are spread over; 0: none */
	__u32 chained;		    /* 1: flows may still stand in the table before this one */
	__u32 new_flows_per_second; /* L4, on this LB as a whole; 0: no limit */
	__u32 new_flows_per_second_per_source;
	__u32 answers_per_second; /* RSTs and unreachables that strangers may provoke */
	__u32 zero;		  /* always; see `unknown` in verifier.h */
	__u32 public_by_tc;	  /* 1: this device takes no frames from XDP, so TC sends there */
	__u32 private_by_tc;
	__u32 notes; /* 1: what becomes of flows is noted (notes.h) */
	__u32 padding2;
	__u32 timeout[16]; /* ticks, by enum flow_state */
};

struct service_key {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 padding;
};

#define SERVICE_AFFINITY_CLIENT 1 /* the client's address alone picks the slot */
#define SERVICE_NO_SNAT 2	 /* L4: nodes see the client's address and answer through this LB */
#define SERVICE_GUE 4		 /* L3: UDP and GUE instead of IP in IP */
#define SERVICE_NO_RESET 8	 /* TCP of no flow is dropped, not answered */
#define SERVICE_HAS_FLOWS 16	 /* of mode L4, or was until lately: look for flows first */
#define SERVICE_RETIRED 32	 /* takes no new flow: it is here for those it has */
#define SERVICE_KEEPS_PORT 64	 /* L4, a range of ports: nodes serve it on the same ports */
#define SERVICE_OF_THIS_NODE 128 /* L2: this machine is a node of it, and other LBs send to it */

#define SNAT_ADDRESSES 8

/* One entry of the table in service.h. It begins with its key; port 0 means a free place. */
struct service {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 padding;
	__u16 id;
	__u8 mode;
	__u8 flags;
	__u16 snat_first_port; /* host order, as all that is calculated with */
	__u16 snat_ports;      /* on each address */
	__u16 low_first_port;  /* for clients whose own port is below 1024 */
	__u16 low_ports;
	__u16 snat_count; /* of the addresses below; at least 1 where there is a port */
	__u16 ring;	  /* which one: services of the same nodes share one */
	__u64 identity;	  /* hash of the service's name: a restarted process adopts ids by it */
	__be32 snat_address[SNAT_ADDRESSES];
};

/* Four slots of a ring: entry ring * RING_ENTRIES + slot / 4, lane slot % 4. The seat is this and
 * the service's id, so that one ring does for many services, each with seats of its own; 0: none.
 */
struct ring_entry {
	__u16 seat_less_id[RING_LANES];
};

#define SEAT_RESOLVED 1 /* destination_mac is good: XDP may send by itself */
#define SEAT_UP 2	/* takes new flows */
#define SEAT_DEAD 4	/* its node is down: UDP and a SYN choose anew */
#define SEAT_RESET 8	/* ... and so its other TCP flows are reset */
#define SEAT_BY_TC 16	/* the device towards it takes no frames from XDP */
#define SEAT_OWN 32	/* its node is this machine (own_node.h) */

/* One node's place at one service, with all that the fast path needs to reach it. */
struct seat {
	__be32 address;
	__be16 port; /* 0: the client's (SERVICE_KEEPS_PORT) */
	__u16 service;
	__u32 ifindex;	 /* 0: no route to it */
	__be32 next_hop; /* the gateway's address, or its own; 0: the gateway has an IPv6 address */
	__u8 destination_mac[6];
	__u8 source_mac[6];
	__u16 mtu;
	__u16 flags;
	__be32 outer_source; /* L3: this LB's address towards the node */
	__u32 cursor;	/* index of the port cursor that all seats of this address and port share */
	__u64 identity; /* hash of the service's name and the node's id */
	__u64 reserved[2];
};

struct seat_counters {
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
	__u64 flows;
};

/* Which SNAT port comes next towards one (node address, node port); shared by all CPUs, so that a
 * port rests for a whole turn of the slice whatever the number of CPUs is.
 */
struct port_cursor {
	__u64 next;
	__u64 low_next;
	__u32 rest; /* ticks that the port taken last had rested; see `gale_snat_port_rest_seconds`
		     */
	__u32 taken_at; /* ticks; 0: never */
};

/* An address that no client has: a VIP of services, an SNAT address of this LB, or both; without a
 * flag, the broadcast address of a network that it is in.
 */
#define ADDRESS_OF_SERVICE 1
#define ADDRESS_FLOATING 2 /* not an address of this host: what matches nothing is dropped */
#define ADDRESS_SNAT 4

struct address_info {
	__u16 flags;
	__u16 snat_first_port;
	__u16 snat_ports;
	__u16 low_first_port;
	__u16 low_ports;
	__u16 padding;
};

/* A floating address in the words of IPv6: an IPv4 address is ::ffff:a.b.c.d (RFC 4291, 2.5.5.2).
 */
struct floating_key {
	__be32 address[4];
};

#define ASKED_IN_PUBLIC 1  /* a VIP: clients ask for it */
#define ASKED_IN_PRIVATE 2 /* an SNAT address: nodes do */

/* What stands here is an address of all LBs together, and no host's. */
struct vip_claim {
	__u64 until; /* ns of the monotonic clock; from then on this LB does not answer for it */
	__u32 sides;
	__u32 moved; /* in ticks; when this LB began, or ceased, to answer for it */
};

/* Another MAC address that said that it has what this LB claims. */
struct rival {
	__u64 seen; /* how often */
	__u64 last; /* ns of the monotonic clock */
	__u8 mac[6];
	__u16 padding;
};

enum direction { DIRECTION_REQUEST, DIRECTION_REPLY };

/* What names one direction of a flow. The last two bytes are zero in a packet's key, and the
 * entry's version in the table.
 */
struct flow_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 direction;
	__u16 version;
};

#define FLOW_FIN 1	  /* this direction has sent its FIN; `end` is the number after it */
#define FLOW_DOUBTED 2	  /* this direction sent a RST that its receiver may have accepted */
#define FLOW_WATCHED 4	  /* the other's FIN came early: packets here may acknowledge it */
#define FLOW_EARLY_FIN 16 /* this direction's FIN came before what it follows */
#define FLOW_REPLICA 8	  /* another LB told of it, and no packet of this direction came here yet */

/* One direction of a flow: one cache line, with its key and the whole rewrite. flow_table.h has the
 * rules of who reads and writes it.
 */
struct flow {
	struct flow_key key;
	__be32 saddr; /* what the packet's addresses and ports become */
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u16 seat;
	__u8 state;
	__u8 flags;
	__u32 other;	/* place of the other direction: bucket * FLOW_WAYS + way */
	__u32 deadline; /* ticks: from then on this is nobody's */
	__u32 end;	/* TCP: the number after the last one that this side has sent */
	__u32 acked;	/* the next number that this side wants, as it last said */
	__u32 edge;	/* the end of the window that this side has offered */
	__u32 begin; /* request: ticks at its start; reply: the number after a SYN on top of it */
	__u8 last_hop[6]; /* whom the client's packets came from; zero: nobody known */
	__u8 scale;	  /* of the windows that this side offers (RFC 7323) */
	__u8 reach;	  /* no window of either side is larger than 2 to this power */
};

#define FLOW_WAYS 16
#define NO_SCALE 255 /* a SYN that says nothing of scaling */

struct flow_bucket {
	struct flow flow[FLOW_WAYS];
};

/* Whoever writes a bucket's keys or takes its places holds its lock. Many buckets share one: they
 * cannot stand in the buckets themselves, which user space maps into its memory.
 */
struct flow_lock {
	struct bpf_spin_lock lock;
	__u32 padding;
};

/* What the ways of a bucket offer to a new entry. */
struct flow_offer {
	__u32 free; /* the way nearest to the home that is free or expired; FLOW_WAYS: none */
	__u32 half; /* the oldest half-open one, else the oldest fresh one, likewise */
	__u32 half_age;
	__u32 half_count;
};

/* New flows in the second that began at `since`. */
struct rate {
	__u64 since; /* coarse monotonic ns */
	__u64 flows;
};

/* What the first fragment of a datagram found out, for those that follow without ports. */
struct fragment_key {
	__be32 saddr;
	__be32 daddr;
	__be16 id;
	__u8 protocol;
	__u8 direction;
};

struct fragment {
	__be32 saddr; /* L4: the rewrite */
	__be32 daddr;
	__u16 address_delta;
	__u16 seat;
	__u8 mode;
	__u8 flags;   /* the service's */
	__be16 id;    /* L4: what the datagram's id becomes, so that no two clients share one */
	__be16 sport; /* of the first fragment as it came: another's must not take its place */
	__be16 dport;
	__be16 to_sport; /* L4: the ports of the rewrite */
	__be16 to_dport;
	__u32 since;	  /* ticks */
	__u8 last_hop[6]; /* as in the flow */
	__u8 is_over;	  /* its last fragment has gone by */
	__u8 padding;
};

/* Where the packets of a client in a VLAN came from: its replies go back into that VLAN. Tags as
 * they stand in a frame, the outer one first; protocol 0: no more of them.
 */
struct vlan_client {
	__u8 mac[6];
	__be16 outer_protocol;
	__u16 outer_id;
	__be16 inner_protocol;
	__u16 inner_id;
	__u16 padding;
};

/* What has become of a flow; notes.h. */
enum note { NOTE_NONE, NOTE_OPENED, NOTE_CLOSED, NOTE_RENEWED };

/* A new entry while it is put together: one for each CPU. */
struct draft {
	struct flow request;
	struct flow_offer offer;
	struct fragment fragment;
	struct vlan_client vlan_client;
	__u32 holder; /* the way that has the key wanted; FLOW_WAYS: none */
	__u32 padding;
	__s64 number; /* of the port chosen; -1: none */
	__u32 force;  /* it could be taken only if need be */
	__u32 padding2;
	__u32 soft_count; /* how many ports were met that could be taken if need be */
	__u32 rested;	  /* ticks that the port had not been used; 0: not known any more */
	__u64 note;	  /* on its way into the ring */
};

_Static_assert(sizeof(struct flow_key) == 16, "a flow's key is 16 bytes");
_Static_assert(sizeof(struct flow) == 64, "one direction of a flow is one cache line");
_Static_assert(sizeof(struct seat) == 64, "a seat is one cache line");
_Static_assert(sizeof(struct service) == 64, "a service is one cache line");
_Static_assert(sizeof(struct service_key) == 8, "a service's key is compared as one word");
_Static_assert(sizeof(struct vip_claim) == 16, "services/quorum writes claims by this layout");
_Static_assert(FLOW_STATES <= 16, "every state has its timeout in the settings");

#endif
