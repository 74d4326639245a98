/* Included by bcc's helpers.h, which uses nothing of it. */
