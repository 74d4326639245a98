"""Whether somebody answers at an address and port."""

from __future__ import annotations

import contextlib
import os
import socket

from services.cli.doctor.finding import Finding, Level

CONNECT_TIMEOUT_S = 2.0


def reach_finding(
    host: str,
    port: int,
    whose: str = "load balancer",
    refused: str = "the port is local.node_port of the LB, 7070 unless its file says otherwise",
) -> Finding:
    """Whether a TCP port can be connected to. `refused`: what to do if nobody listens there."""
    what = f"{host}:{port}"
    try:
        with contextlib.closing(socket.create_connection((host, port), CONNECT_TIMEOUT_S)):
            return Finding(Level.OK, whose, f"{what} answers")
    except ConnectionRefusedError:
        why = "nobody listens there"
        remedy = refused
    except TimeoutError:
        why, remedy = "no answer", "look for a firewall, or a wrong address"
    except OSError as error:
        why, remedy = os.strerror(error.errno) if error.errno else str(error), "look at the route"
        if isinstance(error, socket.gaierror):
            why, remedy = "the name has no address", "DNS, mDNS or /etc/hosts"
    return Finding(Level.FAIL, whose, f"{what}: {why}", remedy)
