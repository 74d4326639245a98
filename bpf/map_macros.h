/* Declaring the maps: shared by pin, or private to one loaded object.
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
 * The loader defines GALE_PIN_DIR, a string, when the maps are to live in the kernel beyond this
 * process: bcc then opens GALE_PIN_DIR "/maps/NAME", or creates and pins it. It takes what it finds
 * there without a look at it; services/dataplane/pins.py compares afterwards and before any program
 * is loaded. Without GALE_PIN_DIR every loaded object has maps of its own (tests, trials).
 */
#ifndef GALE_MAP_MACROS_H
#define GALE_MAP_MACROS_H

#ifdef GALE_PIN_DIR
#define GALE_MAP(_type, _key, _value, _name, _entries, _flags) \
	BPF_F_TABLE(_type ":" GALE_PIN_DIR "/maps/" #_name, _key, _value, _name, _entries, _flags)
#else
#define GALE_MAP(_type, _key, _value, _name, _entries, _flags) \
	BPF_F_TABLE(_type, _key, _value, _name, _entries, _flags)
#endif

#endif
