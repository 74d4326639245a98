/* Forced into every program by bcc (-include), before anything else: what the running kernel's own
 * headers would have given bcc's helpers, so that no kernel headers need be installed.
 */
#ifndef GALE_STUB_KCONFIG_H
#define GALE_STUB_KCONFIG_H

/* bcc's helpers.h refuses to compile without it. */
#define CONFIG_BPF_SYSCALL 1

#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;

typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef _Bool bool;

#define true 1
#define false 0

#endif
