/* Included by bcc's helpers.h, which counts a ring buffer's size in pages. */
#define PAGE_SIZE 4096
