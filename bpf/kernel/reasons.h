/* SPDX-License-Identifier: GPL-2.0 */
/* Why a packet was passed, forwarded or dropped: every packet that a program sees counts one of
 * these, per CPU and per hook. The order is the meaning: all that come before FORWARD_FIRST leave
 * the packet to the next hook or to the kernel, unmodified; all from DROP_FIRST on drop it.
 *
 * User space reads this very list (services/dataplane/counters.py), so a reason has one name
 * everywhere: in the C code, in `gale status` and in the metric gale_verdicts_total{hook,reason}.
 */
#ifndef GALE_REASONS_H
#define GALE_REASONS_H

#define GALE_REASONS(REASON)                                                                       \
	/* Not ours: the kernel gets it untouched, always. */                                      \
	REASON(pass_not_ipv4, "not an IPv4 packet")                                                \
	REASON(pass_not_for_service, "no service at that address, port and protocol")              \
	REASON(pass_malformed, "headers cut short or contradicting each other")                    \
	REASON(pass_no_flow, "no flow of ours: the host's own traffic")                            \
	REASON(pass_icmp_other, "ICMP that concerns no flow of ours")                              \
	REASON(pass_fragment_alone, "a later fragment of what is not for a service")               \
	REASON(pass_other_mac, "a frame to another MAC address, to a group or to all")             \
	REASON(pass_not_ready, "programs are attached, but user space has not set them up yet")    \
	REASON(pass_claimed_elsewhere, "another machine says that it has a floating address")      \
	REASON(pass_own_node, "modes l2 and l3: this machine is the node, and answers by itself")  \
	/* Ours, but XDP cannot finish it: TC does the same work on the next hook. */              \
	REASON(slow_next_hop, "the next hop is not resolved yet")                                  \
	REASON(slow_output, "the device it leaves by takes no frames from XDP")                    \
	REASON(slow_merged, "too long for its way, unless it is many merged into one: TC knows")   \
	REASON(slow_ip_options, "the IPv4 header carries options")                                 \
	REASON(slow_vlan, "a VLAN tag has to come off, or to be kept in mind")                     \
	REASON(slow_no_room, "the answer is longer than the question, and the frame has no room")  \
	/* Sent on, or answered. */                                                                \
	REASON(forward_first, "(none: where the forwards begin)")                                  \
	REASON(l2_forwarded, "bridged to its node by MAC address")                                 \
	REASON(l3_forwarded, "wrapped and routed to its node")                                     \
	REASON(l4_established, "a packet of an established flow")                                  \
	REASON(l4_opening, "a packet of a flow whose handshake is under way")                      \
	REASON(l4_new_flow, "a new flow: node chosen, port taken")                                 \
	REASON(l4_reopened, "a new flow of a client that was here before: same node, same port")   \
	REASON(l4_promoted, "the packet that established its flow")                                \
	REASON(l4_closed, "a late packet of a flow that is closed")                                \
	REASON(l4_reply, "a node's packet on its way back to the client")                          \
	REASON(fragment_forwarded, "a later fragment, sent after its first one")                   \
	REASON(icmp_to_node, "an ICMP error, sent to the node whose packet it quotes")             \
	REASON(icmp_to_client, "an ICMP error, sent to the client whose packet it quotes")         \
	REASON(too_big_answered, "too long for its way: answered with fragmentation needed")       \
	REASON(ttl_answered, "time to live ran out here: answered with time exceeded")             \
	REASON(no_flow_reset, "TCP of no flow: answered with RST")                                 \
	REASON(dead_node_reset, "its node is dead: the client is told by RST, to connect anew")    \
	REASON(no_node_refused, "no node to route to: answered with RST or port unreachable")      \
	REASON(hairpin_refused, "a client on the nodes' side: answered with RST or unreachable")   \
	REASON(arp_answered, "asked by ARP for a floating address that this LB holds")             \
	REASON(nd_answered, "asked by neighbour discovery for a floating address held here")       \
	REASON(echo_answered, "an ICMP echo request to a floating address that this LB holds")     \
	/* Dropped. */                                                                             \
	REASON(drop_first, "(none: where the drops begin)")                                        \
	REASON(drop_no_node, "the service has no node to route to, and no answer is possible")     \
	REASON(drop_no_flow, "neither a flow nor the start of one")                                \
	REASON(drop_no_service, "to a virtual IP, where no service listens")                       \
	REASON(drop_no_port, "no SNAT port towards that node: all are held by living flows")       \
	REASON(drop_flow_rate, "more new flows in this second than this LB admits")                \
	REASON(drop_source_rate, "more new flows in this second than one source may open")         \
	REASON(drop_answer_rate, "not answered: strangers have provoked enough in this second")    \
	REASON(drop_table_full, "the bucket of the flow table holds established flows only")       \
	REASON(drop_handshake_mismatch, "acknowledges what the node never sent: a blind flood")    \
	REASON(drop_flow_taken, "another CPU has opened the same flow this instant")               \
	REASON(drop_no_route, "no route to the node")                                              \
	REASON(drop_ttl, "time to live ran out here, and no answer possible")                      \
	REASON(drop_too_big, "too long for the way to the node, and no answer possible")           \
	REASON(drop_source_is_vip, "claims to come from the VIP itself")                           \
	REASON(drop_martian_source, "from an address that no client can have")                     \
	REASON(drop_fragment_alone, "a later fragment to a VIP whose first one was not seen")      \
	REASON(drop_fragment_clash, "a first fragment that would take another datagram's place")   \
	REASON(drop_not_claimed, "asks for a floating address that this LB does not hold now")     \
	REASON(drop_rival, "another MAC address claims a floating address that this LB holds")     \
	REASON(drop_rewrite_failed, "the kernel refused to rewrite the packet")                    \
	REASON(drop_moving_flow, "of no flow here; its VIP is another LB's, or was a moment ago")

#define GALE_REASON_NAME(name, text) REASON_##name,
enum reason { GALE_REASONS(GALE_REASON_NAME) REASON_COUNT };

#endif
