"""A client of the echo service whose first data travels in its SYN (TCP Fast Open, RFC 7413).

It runs on the client machine by itself (`python3 -c <this text> HOST PORT nothing|first-ack`), as
root, and needs nothing but Python's library and nft. With `first-ack` the first packet of its
connection that is no SYN is lost on the client's own machine. It prints

    {"node": "node-1", "echoed": ["one", "two"], "was_fast": true}

`was_fast`: the server took the data from the SYN.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys

TCP_INFO_BYTES = 256
OPTIONS_BYTE, SYN_DATA = 5, 32
"""`tcpi_options` and TCPI_OPT_SYN_DATA of linux/tcp.h."""
LOSE_FIRST_ACK = """
table ip fast_open
flush table ip fast_open
table ip fast_open {{
    chain goes {{
        type filter hook output priority 0
        tcp sport {port} tcp flags & syn == 0 limit rate 1/hour burst 1 packets drop
    }}
}}
"""


def main(host: str, port: int, loses: str) -> None:
    with socket.socket() as own:
        own.bind(("", 0))
        own.settimeout(10)
        if loses == "first-ack":
            rules = LOSE_FIRST_ACK.format(port=own.getsockname()[1])
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        own.sendto(b"one\n", socket.MSG_FASTOPEN, (host, port))
        stream = own.makefile("rb")
        node, first = (stream.readline().decode().strip() for _ in range(2))
        own.sendall(b"two\n")
        second = stream.readline().decode().strip()
        info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    was_fast = bool(info[OPTIONS_BYTE] & SYN_DATA)
    print(json.dumps({"node": node, "echoed": [first, second], "was_fast": was_fast}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
