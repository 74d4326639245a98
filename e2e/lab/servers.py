"""The real servers of a node: one for each port that a service of the LBs leads to.

    tcp/8080    nginx, and on 8081 too
    tcp/5201    iperf3
    other tcp   echo.py, one process for all of them
    udp         udp.py, likewise

The first three of the lab's services are always served; what an extra file adds is served besides,
by its port and protocol. `check` says how the agent finds out whether a server is well. iperf3
takes every connection for a test, so a check by TCP would keep it busy with nothing: udp.py answers
on its port too, and stands for it.

Pure: texts of files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from e2e.lab import plan
from e2e.lab.plan import Service

HTTP_PORT = 8080
SECOND_HTTP_PORT = 8081
"""For a second service with pages, in the modes where a node's port is the VIP's."""
HTTP_PORTS = frozenset({HTTP_PORT, SECOND_HTTP_PORT})
IPERF_PORT = 5201
TIMES = {"interval": "500ms", "timeout": "500ms"}

GROUP = """\
; The real servers of a node. A crash of theirs is for Gale to notice and for the test to mend:
; nothing restarts them.
[group:server]
programs={names}
"""

PROGRAM = """
[program:{name}]
command=setpriv --pdeathsig KILL -- {command}
startsecs=0
autorestart=false
redirect_stderr=true
stdout_logfile={home}/log/{name}.log
"""

NGINX_CONF = """\
# One process without a master: a SIGKILL of the pid supervisord knows kills the whole server.
daemon off;
master_process off;
user root;
pid {home}/nginx.pid;
error_log {home}/log/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {home}/run/body;
    proxy_temp_path {home}/run/proxy;
    fastcgi_temp_path {home}/run/fastcgi;
    uwsgi_temp_path {home}/run/uwsgi;
    scgi_temp_path {home}/run/scgi;
    default_type application/octet-stream;
    server {{
{listen}
        root {www};
        location = / {{
            default_type text/plain;
            return 200 "{machine}\\n";
        }}
    }}
}}
"""


def check(service: Service) -> dict[str, Any]:
    """The agent's check of a service's server, for node.toml."""
    if service.protocol == "udp" or service.port == IPERF_PORT:
        return {"type": "udp", **TIMES}
    if service.port in HTTP_PORTS:
        return {"type": "http", "path": "/", **TIMES}
    return {"type": "tcp", **TIMES}


def nginx_conf(machine: str, www: Path) -> str:
    listen = "\n".join(f"        listen {port} backlog=4096;" for port in sorted(HTTP_PORTS))
    return NGINX_CONF.format(home=plan.home(machine), www=www, machine=machine, listen=listen)


def supervisor_conf(machine: str, services: Iterable[Service]) -> str:
    """The supervisor file of a node's servers, for these services and the lab's own."""
    commands = _commands(machine, {*services, *plan.SERVICES})
    parts = [GROUP.format(names=",".join(commands))]
    for name, command in commands.items():
        parts.append(PROGRAM.format(name=name, command=command, home=plan.home(machine)))
    return "".join(parts)


def _commands(machine: str, services: set[Service]) -> dict[str, str]:
    tcp = {service.port for service in services if service.protocol == "tcp"}
    udp = {service.port for service in services if service.protocol == "udp"}
    commands = {
        "nginx": f"nginx -c {plan.home(machine) / 'nginx.conf'}",
        "echo": _script("echo.py", machine, tcp - {*HTTP_PORTS, IPERF_PORT}),
        "udp": _script("udp.py", machine, udp | (tcp & {IPERF_PORT})),
    }
    if IPERF_PORT in tcp:
        commands["iperf3"] = f"iperf3 --server --forceflush --port {IPERF_PORT}"
    return commands


def _script(program: str, machine: str, ports: set[int]) -> str:
    words = [str(port) for port in sorted(ports)]
    return f'"{sys.executable}" "{Path(__file__).with_name(program)}" {machine} {" ".join(words)}'
