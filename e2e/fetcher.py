"""A client that fetches a file as slowly as it can for as long as it is wanted to be under way.

It runs on the client machine by itself (`python3 -c <this text> HOST PORT PATH`), so it needs
nothing but Python's library. It reads a piece every few milliseconds; when its standard input is
closed it reads the rest at once, and prints one line of JSON:

    {"bytes": 209715200, "sha256": "9f86…"}

If the connection breaks it ends with a complaint, as what is missing cannot be fetched by it.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import select
import sys

PIECE_BYTES = 1 << 14
REST_S = 0.02
"""Four minutes for the lab's largest file."""
TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description="a long download")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    arguments = parser.parse_args()
    connection = http.client.HTTPConnection(arguments.host, arguments.port, timeout=TIMEOUT_S)
    connection.request("GET", arguments.path)
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        sys.exit(f"{arguments.path}: {answer.status} {answer.reason}")
    fetched, digest, hurries = 0, hashlib.sha256(), False
    while piece := answer.read(PIECE_BYTES):
        fetched += len(piece)
        digest.update(piece)
        hurries = hurries or bool(select.select([sys.stdin], [], [], REST_S)[0])
    if answer.length:
        sys.exit(f"{arguments.path}: {answer.length} bytes are missing")
    print(json.dumps({"bytes": fetched, "sha256": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    main()
