/* What stands in the maps: the contract between the programs and services/dataplane.
 *
 * Every struct has explicit padding, so that a key never carries a stray byte into a hash and user
 * space, which takes the layouts from the compiler's own description, never has to guess one.
 * Addresses and ports are in network order wherever they are compared with a packet (__be16,
 * __be32), everything else is in the host's.
 *
 * IPv6 will get maps of its own beside these: an IPv4 flow keeps its key of 16 bytes.
 */
#ifndef GALE_TYPES_H
#define GALE_TYPES_H

#define RING_SLOTS 65537 /* a prime, as Maglev needs it */
#define RING_LANES 4	 /* seats in one 8-byte entry of the ring */
#define RING_ENTRIES 16385
#define MAX_SERVICES 64
#define SERVICE_PLACES 1024 /* few of them taken, so that an entry always finds one of its own */
#define SERVICE_PROBES 4
#define MAX_SEATS 8192
#define NO_SEAT 0

enum hook { HOOK_XDP_PUBLIC, HOOK_TC_PUBLIC, HOOK_TC_PRIVATE, HOOK_XDP_PRIVATE, HOOK_COUNT };

enum mode { MODE_L2 = 2, MODE_L3 = 3, MODE_L4 = 4 };

/* One entry, index 0: what holds for this LB as a whole. */
struct settings {
	__u64 hash_seed;
	__u32 public_ifindex;
	__u32 private_ifindex;
	__u16 l4_services;   /* 0: no packet ever pays for a look at the conntrack tables */
	__u16 cpus;	     /* possible CPUs: each takes its own stride through the SNAT ports */
	__be32 outer_prefix; /* IP in IP: a /16 the outer sources are spread over; 0: none */
	__u8 public_mac[6];
	__u16 public_mtu;
	__u32 new_flows_per_second; /* L4, on this LB as a whole; 0: no limit */
	__u32 new_flows_per_second_per_source;
};

struct service_key {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 padding;
};

#define SERVICE_AFFINITY_CLIENT 1 /* the client's address alone picks the slot */
#define SERVICE_NO_SNAT 2 /* L4: nodes see the client's address and answer through this LB */
#define SERVICE_GUE 4	  /* L3: UDP and GUE instead of IP in IP */

/* One entry of the table in service.h. It begins with its key; port 0 means a free place. */
struct service {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 padding;
	__u16 id;
	__u8 mode;
	__u8 flags;
	__be32 snat_address;
	__u16 snat_first_port; /* host order: it is calculated with */
	__u16 snat_ports;
	__u32 padding2;
	__u64 identity; /* hash of the service's name: a restarted process adopts ids by it */
};

/* Four slots of a service's ring: entry id * RING_ENTRIES + slot / 4, lane slot % 4. */
struct ring_entry {
	__u16 seat[RING_LANES];
};

#define SEAT_RESOLVED 1 /* destination_mac is good: XDP may send by itself */
#define SEAT_UP 2	/* takes new flows */

/* One node's place at one service, with all that the fast path needs to reach it. */
struct seat {
	__be32 address;
	__be16 port;
	__u16 service;
	__u32 ifindex;	 /* 0: no route to it */
	__be32 next_hop; /* the gateway's address, or its own */
	__u8 destination_mac[6];
	__u8 source_mac[6];
	__u16 mtu;
	__u16 flags;
	__be32 outer_source; /* L3: this LB's address towards the node */
	__u64 identity;	     /* hash of the service's name and the node's id */
	__u64 reserved[2];
};

struct seat_counters {
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
	__u64 flows;
	__u64 next_port; /* this CPU's place in its stride through the SNAT ports */
};

enum direction { DIRECTION_REQUEST, DIRECTION_REPLY };

struct flow_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 direction;
	__u16 zone;
};

enum flow_state {
	FLOW_SYN_SENT,	   /* half: the node has not answered */
	FLOW_SYN_RECEIVED, /* half: the node has answered; the client must acknowledge `expected` */
	FLOW_ESTABLISHED,
	FLOW_CLOSING, /* one side has sent FIN */
	FLOW_CLOSED,  /* both have, or one has reset: its port may be recycled */
};

#define FLOW_FIN_REQUEST 1
#define FLOW_FIN_REPLY 2
#define FLOW_FIN_BOTH 3

/* A conntrack entry: one cache line with the whole rewrite of one direction. The entry of the other
 * direction is found by turning this one's rewrite around (`opposite_key`).
 */
struct flow {
	__be32 saddr; /* what the packet's addresses and ports become */
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u16 address_delta; /* to be added to the checksums, one's complement */
	__u16 port_delta;
	__u16 service;
	__u16 seat;
	__u8 state;
	__u8 flags;
	__u16 padding;
	__u32 expected;	  /* the node's SYN number + 1, host order */
	__u8 last_hop[6]; /* reply: whom the client's packets came from; zero: nobody yet */
	__u16 padding2;
	__u32 touched;	 /* established: when it was last touched, in jiffies */
	__u64 last_seen; /* coarse monotonic ns; packets since the last touch do not count */
	__u64 created;	 /* coarse monotonic ns */
	__u64 stamp;	 /* creation stamp across LBs */
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
	__u8 flags; /* the service's */
	__u16 padding;
	__u64 created;	  /* coarse monotonic ns */
	__u8 last_hop[6]; /* as in the flow */
	__u16 padding2;
};

_Static_assert(sizeof(struct flow_key) == 16, "a flow's key is 16 bytes");
_Static_assert(sizeof(struct flow) == 64, "a conntrack entry is one cache line");
_Static_assert(sizeof(struct seat) == 64, "a seat is one cache line");
_Static_assert(sizeof(struct service_key) == 8, "a service's key is compared as one word");

#endif
