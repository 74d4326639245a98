/* bcc brings its own copy of the BPF interface; nothing is wanted from here. */
