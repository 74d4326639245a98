/* SPDX-License-Identifier: GPL-2.0 */
/* What the verifier needs and the reader does not.
 *
 * The verifier follows a number that it knows through every branch that may have made it: three
 * counts of tags, times two kinds of fragment, times two of ICMP, and all that follows is looked at
 * twelve times, far beyond what it has patience for. Of a number to which something unknown was
 * added it knows nothing, and looks at what follows once.
 */
#ifndef GALE_VERIFIER_H
#define GALE_VERIFIER_H

#include "packet.h"

/* The same number, as far as anybody but the verifier is concerned. */
static __always_inline __u64 unknown(const struct settings *own, __u64 number)
{
	return number + *(const volatile __u32 *)&own->zero;
}

/* Has the compiler keep an object in memory as it is declared. Taken apart, each of its fields
 * would be spilled to eight bytes of a stack that has 512; and of a field the verifier only knows
 * its size.
 */
static __always_inline void keep_together(void *object)
{
	asm volatile("" : : "r"(object) : "memory");
}

/* To be called once the headers are read. */
static __always_inline void forget_how_it_was_read(struct packet *packet,
						   const struct settings *own)
{
	__u64 zero = unknown(own, 0);

	packet->tags += zero;
	packet->is_tagged += zero;
	packet->first_fragment += zero;
	packet->icmp_error += zero;
	packet->tcp_flags += zero;
	packet->transport_bytes += zero;
	packet->ip_bytes += zero;
	packet->bytes += zero;
}

#endif
