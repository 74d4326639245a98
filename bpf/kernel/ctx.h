/* SPDX-License-Identifier: GPL-2.0 */
/* The hook that a program is compiled for: one source serves both.
 *
 * What both need is included here, before the choice: each header is taken once, where it is met
 * first (bpf/compiler.py).
 */
#ifndef GALE_CTX_H
#define GALE_CTX_H

#include "packet.h"
#include "checksum.h"
#include "nat.h"

#ifdef GALE_XDP
#include "ctx_xdp.h"
#else
#include "ctx_skb.h"
#endif

#endif
