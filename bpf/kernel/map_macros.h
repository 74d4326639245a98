/* SPDX-License-Identifier: GPL-2.0 */
/* Declaring a map.
 *
 *     GALE_MAP(type, key, value, name, entries, flags)
 *     GALE_MAP("lru_hash", struct flow_key, struct flow, est, CONNTRACK_ENTRIES, 0);
 *     GALE_MAP("lpm_trie", struct prefix, u32, sources, 1024, BPF_F_NO_PREALLOC);
 *
 * `type` is bcc's word as a string: "hash", "lru_hash", "array", "percpu_array", "percpu_hash",
 * "lpm_trie". `entries` is anything the compiler can work out, so also a -D. Afterwards
 * `name.lookup(&key)`, `name.update(&key, &value)`, `name.insert(&key, &value)` (NOEXIST) and
 * `name.delete(&key)` as always with bcc; not from within a macro, which bcc does not rewrite.
 *
 * Pinning is no business of the C source: bcc makes every map new, and bpf/pins.py
 * puts the pinned one in its place, once it has seen that both have the same shape. bcc's own way
 * (BPF_TABLE_PINNED) takes any pin it finds without a look, and opens it by its id, which the
 * kernel allows to CAP_SYS_ADMIN only: more than a load balancer's process should have.
 */
#ifndef GALE_MAP_MACROS_H
#define GALE_MAP_MACROS_H

#define GALE_MAP(_type, _key, _value, _name, _entries, _flags)                                     \
	BPF_F_TABLE(_type, _key, _value, _name, _entries, _flags)

#endif
