/* <linux/icmp.h> and <linux/if_arp.h> include this for two names only; the system's own would pull
 * in the C library's headers, which need not be installed.
 */
#ifndef GALE_STUB_IF_H
#define GALE_STUB_IF_H

#define IFNAMSIZ 16

struct sockaddr {
	unsigned short sa_family;
	char sa_data[14];
};

#endif
