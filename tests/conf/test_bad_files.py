"""Each wrong file is refused on the right line, by the right key, through the API and the program.

In the texts below the faulty line is marked by `#!`: the mark is a comment, so it is part of the
file, and the table needs no counted lines that go stale.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from conf import ConfigError, load_either
from conf.source import Source

GALE = Path(sys.executable).with_name("gale")

LOCAL = """
[local]
net_interface_private = "eth1"
net_interface_public = "eth0"
"""

NODE = """
[load_balancer]
addresses = [{ ip = "10.0.0.1", port = 7070 }]
"""

ONE = LOCAL.replace("eth1", "eth0")

QUORUM = LOCAL + "[load_balancer_quorum]\n"

SERVICE = LOCAL + '[[services]]\nname = "a"\nport = 1\n'


@dataclass(frozen=True)
class Bad:
    """A file with one fault; `line` only where the fault is on no line that could carry a mark."""

    name: str
    text: str
    key: str
    word: str
    line: int | None = None

    def expected_line(self) -> int:
        if self.line is not None:
            return self.line
        (line,) = (n for n, text in enumerate(self.text.split("\n"), start=1) if "#!" in text)
        return line


BAD_FILES = [
    # ------------------------------------------------------------- keys that are missing or unknown
    Bad("empty file", "", "local.net_interface_private", "missing", 1),
    Bad(
        "no interface",
        '\n\n[local] #!\nnet_interface_public = "eth0"\n',
        "local.net_interface_private",
        "missing",
    ),
    Bad("unknown table", LOCAL + "[node_helth] #!\n", "node_helth", '"node_health"'),
    Bad("unknown key", LOCAL + "node_prt = 1 #!\n", "local.node_prt", '"node_port"'),
    Bad("key of another table", LOCAL + "heartbeat = 1 #!", "local.heartbeat", "quorum]"),
    Bad("unlike any key", LOCAL + "zzz = 1 #!\n", "local.zzz", "expected one of node_port"),
    Bad("dashes", LOCAL + "node-port = 1 #!\n", "local.node-port", '"node_port"'),
    Bad("quoted key", LOCAL + '"a key" = 1 #!\n', 'local."a key"', "unknown key"),
    Bad("dotted key", LOCAL + "[dataplane]\nxdp.mode = 1 #!\n", "dataplane.xdp", "a table"),
    Bad("key at top", "node_port = 7070 #!\n" + LOCAL, "node_port", "[local]"),
    Bad("table is a value", "security = 1 #!\n" + LOCAL, "security", "expected [security]"),
    Bad("table, not a list", LOCAL + "[services] #!\n", "services", "expected [[services]]"),
    Bad(
        "unknown key of a peer",
        QUORUM + 'addresses = [\n  { ip = "10.0.0.1", port = 1 },\n'
        '  { ip = "10.0.0.2", port = 1, prot = 1 }, #!\n]\n',
        "load_balancer_quorum.addresses[1].prot",
        '"port"',
    ),
    Bad(
        "peer without a port",
        QUORUM + 'addresses = [\n  # two\n  { ip = "10.0.0.1" }, #!\n]\n',
        "load_balancer_quorum.addresses[0].port",
        "missing",
    ),
    Bad(
        "service without a port",
        LOCAL + '[[services]]\nname = "a"\nport = 1\n\n[[services]] #!\nname = "b"\n',
        "services[1].port",
        "missing",
    ),
    # ------------------------------------------------------------- services and their room
    Bad(
        "a range backwards",
        LOCAL + '[[services]]\nname = "a"\nport = "9009-9000" #!\n',
        "services[0].port",
        "no range of ports",
    ),
    Bad(
        "a range beyond the last port",
        LOCAL + '[[services]]\nname = "a"\nport = "65000-65536" #!\n',
        "services[0].port",
        "no range of ports",
    ),
    Bad(
        "nodes on another range",
        SERVICE.replace("port = 1", 'port = "10-19"') + 'node_port = "20-29" #!\n',
        "services[0].node_port",
        "the same range",
    ),
    Bad(
        "ranges that overlap",
        SERVICE.replace("port = 1", 'port = "9000-9099"')
        + '[[services]]\nname = "b"\nport = "9099-9199" #!\n',
        "services[1].port",
        "also another service's (line 7)",
    ),
    Bad(
        "a range around another service",
        SERVICE.replace("port = 1", "port = 9050")
        + '[[services]]\nname = "b"\nport = "9000-9099" #!\n',
        "services[1].port",
        "also another service's",
    ),
    Bad(
        "more services than there is room for",
        LOCAL
        + "".join(
            f'[[services]]{" #!" if port == 1001 else ""}\nname = "s{port}"\nport = {port}\n'
            for port in range(1, 1002)
        ),
        "services[1000]",
        "at most 1000",
    ),
    Bad(
        "more ports than there is room for",
        LOCAL
        + '[[services]]\nname = "a"\nport = "1-16384"\n'
        + '[[services]]\nname = "b"\nport = 20000 #!\n',
        "services[1].port",
        "at most 16384 in all",
    ),
    Bad(
        "a group whose flows go anywhere",
        SERVICE + 'affinity = "flow"\naffinity_group = "shop" #!\n',
        "services[0].affinity_group",
        'expected affinity "client"',
    ),
    Bad(
        "the LB's own address on its nodes, where they reach it by it",
        LOCAL.replace("eth1", "eth0") + 'mode = "l2" #!\n',
        "local.mode",
        "this machine's own address",
    ),
    Bad(
        "likewise of one service",
        SERVICE.replace("eth1", "eth0") + 'mode = "l3" #!\n',
        "services[0].mode",
        "expected mode",
    ),
    # ------------------------------------------------------------- numbers and ports
    Bad("port 0", LOCAL + "node_port = 0 #!\n", "local.node_port", "1 to 65535"),
    Bad("port 65536", LOCAL + "clients_port = 65536 #!\n", "local.clients_port", "1 to 65535"),
    Bad("port as text", LOCAL + 'api_port = "5555" #!\n', "local.api_port", "whole number"),
    Bad("port true", LOCAL + "api_port = true #!\n", "local.api_port", "whole number"),
    Bad("port 80.0", LOCAL + "clients_port = 80.0 #!\n", "local.clients_port", "whole number"),
    Bad(
        "no checks",
        LOCAL + "[node_health]\nchecks_before_routing = 0 #!\n",
        "node_health.checks_before_routing",
        "from 1",
    ),
    Bad(
        "fails 0",
        LOCAL + "[node_health]\nblack_list_after_fails = 0 #!\n",
        "node_health.black_list_after_fails",
        "-1",
    ),
    Bad(
        "fails -2",
        LOCAL + "[node_health]\nblack_list_after_fails = -2 #!\n",
        "node_health.black_list_after_fails",
        "-1",
    ),
    Bad(
        "negative entries",
        LOCAL + "[dataplane]\nconntrack_entries = -5 #!\n",
        "dataplane.conntrack_entries",
        "out of range",
    ),
    # ------------------------------------------------------------- durations
    Bad(
        "duration without unit",
        LOCAL + "[node_health]\nchecks_timeout = 5 #!\n",
        "node_health.checks_timeout",
        '"5s"',
    ),
    Bad(
        "duration in days",
        LOCAL + '[node_health]\nblack_list_expiry = "5d" #!\n',
        "node_health.black_list_expiry",
        "no duration",
    ),
    Bad(
        "negative duration",
        LOCAL + '[node_health]\nchecks_timeout = "-5s" #!\n',
        "node_health.checks_timeout",
        "no duration",
    ),
    Bad(
        "duration of zero",
        LOCAL + '[node_health]\nblack_list_expiry = "0s" #!\n',
        "node_health.black_list_expiry",
        "too short",
    ),
    Bad(
        "fraction of a second",
        LOCAL + '[node_health]\nchecks_timeout = "1.5s" #!\n',
        "node_health.checks_timeout",
        "no duration",
    ),
    Bad(
        "space before the unit",
        LOCAL + '[node_health]\nchecks_timeout = "5 s" #!\n',
        "node_health.checks_timeout",
        "no duration",
    ),
    # ------------------------------------------------------------- words, names, addresses
    Bad("unknown mode", LOCAL + 'mode = "l7" #!\n', "local.mode", '"l2", "l3" or "l4"'),
    Bad("mode in capitals", LOCAL + 'mode = "L4" #!\n', "local.mode", '"l2", "l3" or "l4"'),
    Bad("name with a space", LOCAL + 'name = "lb 0" #!\n', "local.name", "letters"),
    Bad("name too long", LOCAL + f'name = "{"a" * 64}" #!\n', "local.name", "at most 63"),
    Bad(
        "interface too long",
        '[local]\nnet_interface_public = "eth0"\nnet_interface_private = "an-ethernet-port" #!\n',
        "local.net_interface_private",
        "at most 15",
    ),
    Bad(
        "empty interface",
        '[local]\nnet_interface_public = "" #!\nnet_interface_private = "eth0"\n',
        "local.net_interface_public",
        "no interface name",
    ),
    Bad(
        "boolean as text",
        QUORUM + 'enforce_single_configuration = "yes" #!\n',
        "load_balancer_quorum.enforce_single_configuration",
        "true or false",
    ),
    Bad(
        "address out of range",
        QUORUM + 'addresses = [\n{ ip = "10.0.0.256", port = 8081 }] #!\n',
        "load_balancer_quorum.addresses[0].ip",
        "no IPv4 address",
    ),
    Bad(
        "key of a peer on a line of its own",
        QUORUM + 'addresses = [ { ip = "10.0.0.1", port = 1 },\n\n'
        '  { ip = "10.0.0.2", port = 70000 } ] #!\n',
        "load_balancer_quorum.addresses[1].port",
        "no port",
    ),
    Bad(
        "IPv6 where IPv4 is meant",
        LOCAL + '[[virtual_ips]]\naddress = "fe80::1" #!\n',
        "virtual_ips[0].address",
        "IPv4",
    ),
    Bad(
        "multicast VIP",
        LOCAL + '[[virtual_ips]]\naddress = "224.0.0.1" #!\n',
        "virtual_ips[0].address",
        "IPv4",
    ),
    Bad(
        "VIP of the loopback",
        LOCAL + '[[virtual_ips]]\naddress = "127.0.0.2" #!\n',
        "virtual_ips[0].address",
        "IPv4",
    ),
    Bad(
        "host name with a port",
        QUORUM + 'addresses = [{ hostname = "lb:1", port = 1 }] #!\n',
        "load_balancer_quorum.addresses[0].hostname",
        "without a port",
    ),
    Bad(
        "address as host name",
        QUORUM + 'addresses = [{ hostname = "10.0.0.1", port = 1 }] #!\n',
        "load_balancer_quorum.addresses[0].hostname",
        "host name",
    ),
    Bad(
        "ip and hostname",
        QUORUM + 'addresses = [{ ip = "10.0.0.1", hostname = "a", port = 1 }] #!\n',
        "load_balancer_quorum.addresses[0].hostname",
        "either",
    ),
    Bad(
        "neither ip nor hostname",
        QUORUM + "addresses = [\n  { port = 1 }, #!\n]\n",
        "load_balancer_quorum.addresses[0]",
        "neither",
    ),
    Bad("relative path", LOCAL + '[security]\nkeys = "keys" #!\n', "security.keys", "absolute"),
    Bad(
        "events without a port",
        LOCAL + '[bus]\nevents = "tcp://10.0.0.1" #!\n',
        "bus.events",
        "tcp://",
    ),
    Bad("events by ipc", LOCAL + '[bus]\nevents = "ipc:///x" #!\n', "bus.events", "tcp://"),
    Bad(
        "reply hook", LOCAL + '[dataplane]\nreply_hook = "XDP" #!\n', "dataplane.reply_hook", '"tc"'
    ),
    # ------------------------------------------------------------- sense: the quorum
    Bad(
        "lease the promise does not cover",
        QUORUM + 'promise = "250ms"\nlease = "241ms" #!\n',
        "load_balancer_quorum.lease",
        "at most 240ms",
    ),
    Bad(
        "promise that does not cover the lease",
        QUORUM + 'promise = "116ms" #!\n',
        "load_balancer_quorum.promise",
        "at least 117ms",
    ),
    Bad(
        "promise longer than the boot's hold-off",
        QUORUM + 'promise = "3s" #!\n',
        "load_balancer_quorum.promise",
        "too long",
    ),
    Bad(
        "slow heartbeat",
        QUORUM + 'heartbeat = "112ms" #!\n',
        "load_balancer_quorum.heartbeat",
        "less than 112ms",
    ),
    Bad(
        "short lease",
        QUORUM + 'lease = "25ms" #!\n',
        "load_balancer_quorum.lease",
        "more than 25ms",
    ),
    Bad(
        "duplicate peer",
        QUORUM + 'addresses = [\n  { ip = "10.0.0.1", port = 1 },\n'
        '  { ip = "10.0.0.1", port = 1 }, #!\n]\n',
        "load_balancer_quorum.addresses[1].ip",
        "(line 7)",
    ),
    Bad(
        "duplicate host name",
        QUORUM + 'addresses = [\n  { hostname = "lb.local", port = 1 },\n'
        '  { hostname = "LB.local", port = 2 }, #!\n]\n',
        "load_balancer_quorum.addresses[1].hostname",
        "each LB once",
    ),
    Bad(
        "no port left for replication",
        QUORUM + 'addresses = [{ ip = "10.0.0.1", port = 65535 }] #!\n',
        "load_balancer_quorum.addresses[0].port",
        "at most 65534",
    ),
    Bad(
        "lonely witness",
        QUORUM + "witness = true #!\n",
        "load_balancer_quorum.witness",
        "only votes",
    ),
    Bad(
        "announcing by a word that is none",
        QUORUM + 'announce = "bgp" #!\n',
        "load_balancer_quorum.announce",
        '"arp"',
    ),
    Bad(
        "a script that is not named",
        QUORUM + 'announce = "exec" #!\n',
        "load_balancer_quorum.announce",
        "announce_command",
    ),
    Bad(
        "a script that nobody runs",
        QUORUM + 'announce_command = "/bin/true" #!\n',
        "load_balancer_quorum.announce_command",
        'announce = "exec"',
    ),
    Bad(
        "a script that could be anywhere",
        QUORUM + 'announce = "exec"\nannounce_command = "move" #!\n',
        "load_balancer_quorum.announce_command",
        "absolute path",
    ),
    Bad(
        "replication on the port of the nodes",
        QUORUM + "replication_port = 7070 #!\n",
        "load_balancer_quorum.replication_port",
        "local.node_port",
    ),
    Bad(
        "quorum on the port of the API",
        QUORUM + 'addresses = [{ ip = "10.0.0.1", port = 5555 }] #!\n',
        "load_balancer_quorum.addresses[0].port",
        "local.api_port",
    ),
    # ------------------------------------------------------------- sense: ports, VIPs, services
    Bad("two uses of a port", LOCAL + "api_port = 7070 #!\n", "local.api_port", "local.node_port"),
    Bad(
        "clients and nodes on one port of one interface",
        ONE + "clients_port = 7070 #!\n",
        "local.clients_port",
        "same interface",
    ),
    Bad(
        "clients and LBs on one port of one interface",
        ONE + "clients_port = 9000 #!\n[load_balancer_quorum]\naddresses = [\n"
        '{ ip = "10.0.0.1", port = 9000 }, { ip = "10.0.0.2", port = 9000 }]\n',
        "local.clients_port",
        "the LBs' own",
    ),
    Bad(
        "clients and flows of other LBs on one port of one interface",
        ONE + "[load_balancer_quorum]\naddresses = [\n"
        '{ ip = "10.0.0.1", port = 9000 }, { ip = "10.0.0.2", port = 9000 }]\n'
        '[[services]]\nname = "a"\nport = "9001-9003" #!\n'
        '[[services]]\nname = "b"\nport = "9000-9001"\nprotocol = "udp"\n',
        "services[0].port",
        "replication_port",
    ),
    Bad(
        "clients and replication on one port of one interface",
        ONE + "clients_port = 9100 #!\n[load_balancer_quorum]\nreplication_port = 9100\n",
        "local.clients_port",
        "replication_port",
    ),
    Bad(
        "clients and subscribers on one port of one interface",
        ONE + 'clients_port = 5556 #!\n[bus]\nevents = "tcp://10.0.0.1:5556"\n',
        "local.clients_port",
        "bus.events",
    ),
    Bad(
        "subscribers on the port of the nodes",
        LOCAL + '[bus]\nevents = "tcp://*:7070" #!\n',
        "bus.events",
        "local.node_port",
    ),
    Bad(
        "replies by XDP on one interface",
        ONE + '[dataplane]\nreply_hook = "xdp" #!\n',
        "dataplane.reply_hook",
        "an interface for each side",
    ),
    Bad(
        "direct return on one interface",
        '[local]\nnet_interface_private = "eth0"\nnet_interface_public = "eth0"\nmode = "l2" #!\n',
        "local.mode",
        "nodes would take this machine's own address",
    ),
    Bad(
        "a service's direct return on one interface",
        '[local]\nnet_interface_private = "eth0"\nnet_interface_public = "eth0"\n'
        '[[services]]\nname = "a"\nport = 1\nmode = "l3" #!\n',
        "services[0].mode",
        "nodes would take this machine's own address",
    ),
    Bad(
        "duplicate VIP",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\n\n'
        '[[virtual_ips]]\naddress = "10.0.0.9" #!\n',
        "virtual_ips[1].address",
        "(line 6)",
    ),
    Bad(
        "VIP that is an LB's own",
        QUORUM + 'addresses = [{ ip = "10.0.0.9", port = 1 }]\n'
        '[[virtual_ips]]\naddress = "10.0.0.9" #!\n',
        "virtual_ips[0].address",
        "LB's own",
    ),
    Bad(
        "duplicate name of a service",
        LOCAL + '[[services]]\nname = "a"\nport = 1\n[[services]]\nname = "a" #!\nport = 2\n',
        "services[1].name",
        "(line 6)",
    ),
    Bad(
        "two services on one port",
        LOCAL + '[[services]]\nname = "a"\nport = 1\n[[services]]\nname = "b"\nport = 1 #!\n',
        "services[1].port",
        "(line 7)",
    ),
    Bad(
        "service on no VIP",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\n'
        '[[services]]\nname = "a"\nport = 1\naddress = "10.0.0.8" #!\n',
        "services[0].address",
        "10.0.0.9",
    ),
    Bad(
        "affinity",
        LOCAL + '[[services]]\nname = "a"\nport = 1\naffinity = "source" #!\n',
        "services[0].affinity",
        '"flow" or "client"',
    ),
    Bad(
        "encapsulation of l4",
        LOCAL + '[[services]]\nname = "a"\nport = 1\nencap = "gue" #!\n',
        "services[0].encap",
        'mode "l4"',
    ),
    Bad(
        "snat of l2",
        LOCAL + 'mode = "l2"\n[[services]]\nname = "a"\nport = 1\nsnat = false #!\n',
        "services[0].snat",
        'mode "l2"',
    ),
    Bad(
        "translated port of l3",
        LOCAL + '[[services]]\nname = "a"\nport = 1\nmode = "l3"\nnode_port = 2 #!\n',
        "services[0].node_port",
        "translate",
    ),
    # ------------------------------------------------------------- sense: SNAT and dead nodes
    Bad(
        "one SNAT address and several",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\nsnat_address = "10.1.0.9"\n'
        'snat_addresses = ["10.1.0.8"] #!\n',
        "virtual_ips[0].snat_addresses",
        "(line 7)",
    ),
    Bad(
        "SNAT address of a VIP as a list of one word",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\nsnat_addresses = "10.1.0.8" #!\n',
        "virtual_ips[0].snat_addresses",
        "[ ... ]",
    ),
    Bad(
        "SNAT address that is no address",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\n'
        'snat_addresses = [\n"10.1.0.8",\n"10.1.0" #!\n]\n',
        "virtual_ips[0].snat_addresses[1]",
        "IPv4",
    ),
    Bad(
        "SNAT address twice in a list of a VIP",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\n'
        'snat_addresses = [\n"10.1.0.8",\n"10.1.0.8", #!\n]\n',
        "virtual_ips[0].snat_addresses[1]",
        "(line 8)",
    ),
    Bad(
        "SNAT address of two VIPs",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.8"\nsnat_address = "10.1.0.8"\n'
        '[[virtual_ips]]\naddress = "10.0.0.9"\nsnat_addresses = ["10.1.0.8"] #!\n',
        "virtual_ips[1].snat_addresses[0]",
        "another snat_address (line 7)",
    ),
    Bad(
        "nine SNAT addresses of a VIP",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\n'
        f"snat_addresses = {[f'10.1.0.{i}' for i in range(1, 10)]} #!\n",
        "virtual_ips[0].snat_addresses",
        "9 addresses, expected from 1 to 8",
    ),
    Bad(
        "nine SNAT addresses of a service",
        SERVICE + f"snat_addresses = {[f'10.1.0.{i}' for i in range(1, 10)]} #!\n",
        "services[0].snat_addresses",
        "9 addresses, expected from 1 to 8",
    ),
    Bad(
        "no SNAT address in a list",
        SERVICE + "snat_addresses = [] #!\n",
        "services[0].snat_addresses",
        "or no list",
    ),
    Bad(
        "SNAT address that is a number",
        SERVICE + "snat_addresses = [1] #!\n",
        "services[0].snat_addresses[0]",
        "IPv4",
    ),
    Bad(
        "SNAT address twice in a list of a service",
        SERVICE + 'snat_addresses = [\n"10.1.0.8", "10.1.0.7",\n"10.1.0.8"] #!\n',
        "services[0].snat_addresses[2]",
        "already in the list (line 9)",
    ),
    Bad(
        "SNAT address of a service that is a VIP",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.9"\n'
        '[[services]]\nname = "a"\nport = 1\nsnat_addresses = ["10.0.0.9"] #!\n',
        "services[0].snat_addresses[0]",
        "another address (line 6)",
    ),
    Bad(
        "eight load balancers",
        QUORUM
        + "addresses = [\n"
        + "".join(f'{{ ip = "10.0.0.{n}", port = 1 }},\n' for n in range(1, 8))
        + '{ ip = "10.0.0.8", port = 1 }, #!\n]\n',
        "load_balancer_quorum.addresses[7]",
        "8 load balancers, expected at most 7",
    ),
    Bad(
        "SNAT address of a service that is an LB's own",
        QUORUM + 'addresses = [{ ip = "10.0.0.9", port = 1 }]\n'
        '[[services]]\nname = "a"\nport = 1\nsnat_addresses = ["10.0.0.9"] #!\n',
        "services[0].snat_addresses[0]",
        "an LB's own address (line 6)",
    ),
    Bad(
        "SNAT address of a service that moves with another VIP",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.8"\n'
        '[[virtual_ips]]\naddress = "10.0.0.9"\nsnat_address = "10.1.0.9"\n'
        '[[services]]\nname = "a"\nport = 1\nsnat_addresses = ["10.1.0.9"] #!\n',
        "services[0].snat_addresses[0]",
        "moves with the virtual IP 10.0.0.9 (line 9)",
    ),
    Bad(
        "SNAT address of services of two VIPs",
        LOCAL + '[[virtual_ips]]\naddress = "10.0.0.8"\n[[virtual_ips]]\naddress = "10.0.0.9"\n'
        '[[services]]\nname = "a"\nport = 1\nsnat_addresses = ["10.1.0.9"]\n'
        '[[services]]\nname = "b"\nport = 1\naddress = "10.0.0.9"\n'
        'snat_addresses = ["10.1.0.9"] #!\n',
        "services[1].snat_addresses[0]",
        "10.0.0.8 (line 12)",
    ),
    Bad(
        "SNAT addresses of l2",
        SERVICE + 'mode = "l2"\nsnat_addresses = ["10.1.0.9"] #!\n',
        "services[0].snat_addresses",
        'mode "l2"',
    ),
    Bad(
        "SNAT addresses without SNAT",
        SERVICE + 'snat = false\nsnat_addresses = ["10.1.0.9"] #!\n',
        "services[0].snat_addresses",
        "snat (line 8)",
    ),
    Bad(
        "on_node_down",
        SERVICE + 'on_node_down = "drop" #!\n',
        "services[0].on_node_down",
        '"reset" or "keep"',
    ),
    Bad("no_flow", SERVICE + "no_flow = true #!\n", "services[0].no_flow", '"reset" or "drop"'),
    *(
        Bad(
            f"{key} of {text}",
            LOCAL + f"[dataplane]\n{key} = {text} #!\n",
            f"dataplane.{key}",
            word,
        )
        for key in ("tcp_established", "tcp_closing", "tcp_time_wait", "udp", "udp_one_sided")
        for text, word in (
            ('"999ms"', "from 1s to 168h"),
            ('"169h"', "from 1s to 168h"),
            ("60", "no unit"),
        )
    ),
    # ------------------------------------------------------------- nodes
    Bad("node without LBs", "[load_balancer] #!\n", "load_balancer.addresses", "missing"),
    Bad("empty list", "[load_balancer]\naddresses = [] #!\n", "load_balancer.addresses", "empty"),
    Bad(
        "duplicate LB",
        '[load_balancer]\naddresses = [\n  { ip = "10.0.0.1", port = 7070 },\n'
        '  { ip = "10.0.0.1", port = 7070 } #!\n]\n',
        "load_balancer.addresses[1].ip",
        "each LB once",
    ),
    Bad("weight 0", NODE + "[node]\nweight = 0 #!\n", "node.weight", "from 1"),
    Bad(
        "type of a check",
        NODE + '[[services]]\nname = "a"\nport = 1\ncheck = { type = "ping" } #!\n',
        "services[0].check.type",
        '"http"',
    ),
    Bad(
        "interval of a check",
        NODE + '[[services]]\nname = "a"\nport = 1\n[services.check]\ninterval = "1" #!\n',
        "services[0].check.interval",
        "unit",
    ),
    Bad(
        "path of a tcp check",
        NODE + '[[services]]\nname = "a"\nport = 1\ncheck = { path = "/" } #!\n',
        "services[0].check.path",
        '"http"',
    ),
    Bad(
        "path of a udp check",
        NODE + '[[services]]\nname = "a"\nport = 1\ncheck = { type = "udp", path = "/" } #!\n',
        "services[0].check.path",
        '"http"',
    ),
    Bad(
        "path without a slash",
        NODE + '[[services]]\nname = "a"\nport = 1\ncheck = { type = "http", path = "x" } #!\n',
        "services[0].check.path",
        "begins with",
    ),
    Bad(
        "service twice",
        NODE + '[[services]]\nname = "a"\nport = 1\n[[services]]\nname = "a" #!\nport = 2\n',
        "services[1].name",
        "once",
    ),
    Bad(
        "more services than an LB takes of a node",
        NODE
        + "".join(f'[[services]]\nname = "s{i}"\nport = 1\n' for i in range(1_000))
        + '[[services]]\nname = "one-too-many" #!\nport = 1\n',
        "services[1000].name",
        "at most 1000",
    ),
    # ------------------------------------------------------------- no TOML at all
    Bad(
        "unquoted",
        "[local]\nnet_interface_public = wlo1 #!\n",
        "local.net_interface_public",
        "TOML",
    ),
    Bad("key twice", LOCAL + "api_port = 1\napi_port = 2 #!\n", "local.api_port", "overwrite"),
    Bad("table twice", LOCAL + "[local] #!\n", "local", "twice"),
    Bad("no value", LOCAL + "api_port = #!\n", "local.api_port", "TOML"),
    Bad("open list", '[load_balancer]\naddresses = [\n  { ip = "10.0.0.1" #!\n', "syntax", "TOML"),
    Bad("no equals sign", LOCAL + "api_port 5555 #!\n", "syntax", "TOML"),
]


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad.name.replace(" ", "-"))
def test_bad_file_is_refused(bad: Bad, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(bad.text)
    with pytest.raises(ConfigError) as caught:
        load_either(Source.read(file))
    of_key = [problem for problem in caught.value.problems if problem.key == bad.key]
    assert len(of_key) == 1, str(caught.value)
    assert of_key[0].line == bad.expected_line(), str(caught.value)
    assert bad.word in of_key[0].message
    assert ", " in of_key[0].message, "what is wrong, what is expected"
    # One fault, one line: only what stems from a missing table may take more than one.
    if bad.name != "empty file":
        others = {problem.key for problem in caught.value.problems} - {bad.key}
        assert others <= {"local.net_interface_public"}, str(caught.value)

    program = subprocess.run(
        [GALE, "check", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert program.returncode == 2, program.stderr
    assert program.stdout.splitlines() == [str(problem) for problem in caught.value.problems]
    assert f"{file}:{bad.expected_line()}: {bad.key}: " in program.stdout


def test_names_of_bad_files_differ() -> None:
    names = [bad.name for bad in BAD_FILES]
    assert len(names) >= 40
    assert len(set(names)) == len(names)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "lb.toml"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"1: file: cannot be read .*no regular file"):
            Source.read(path)


def test_a_file_that_is_far_too_long_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    with file.open("wb") as opened:
        opened.truncate(1 << 34)
    with pytest.raises(ConfigError, match="longer than 4 MiB"):
        Source.read(file)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml:1: file: .*No such file"):
        Source.read(tmp_path / "absent.toml")


def test_directory_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1: file: .*no regular file"):
        Source.read(tmp_path)


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "latin1.toml"
    file.write_bytes(b"# one\n# two\n# caf\xe9\n[local]\n")
    with pytest.raises(ConfigError, match="3: file: byte 0xe9 is not UTF-8"):
        Source.read(file)


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "1" * 5000])
def test_toml_beyond_all_sense(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="1: syntax: "):
        Source.read(file)


EVERYTHING_WRONG = """\
[local]
node_port = 65536
clients_prt = 1
net_interface_private = 5
[node_health]
checks_timeout = 5
[load_balancer_quorum]
lease = "300ms"
addresses = [
  { ip = "10.0.0.1", port = 8081 },
  { ip = "10.0.0.300", port = 8081 },
  { ip = "10.0.0.2", hostname = "x", port = 8081 },
  { ip = "10.0.0.1", port = 8081 },
  { port = 0, foo = 1 },
]
[[services]]
name = "a b"
port = 1
[[services]]
name = "b"
port = 80
encap = "gue"
[[services]]
name = "b"
mode = "l5"
port = 81
encap = "gue"
[[services]]
name = "c"
port = 80
[dataplan]
"""


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Shape and sense together, and sense only of what has no fault of its own."""
    file = tmp_path / "file.toml"
    file.write_text(EVERYTHING_WRONG)
    with pytest.raises(ConfigError) as caught:
        load_either(Source.read(file))
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [
        (1, "local.net_interface_public"),
        (2, "local.node_port"),
        (3, "local.clients_prt"),
        (4, "local.net_interface_private"),
        (6, "node_health.checks_timeout"),
        (8, "load_balancer_quorum.lease"),
        (11, "load_balancer_quorum.addresses[1].ip"),
        (12, "load_balancer_quorum.addresses[2].hostname"),
        (13, "load_balancer_quorum.addresses[3].ip"),
        (14, "load_balancer_quorum.addresses[4].foo"),
        (14, "load_balancer_quorum.addresses[4].port"),
        (17, "services[0].name"),
        (22, "services[1].encap"),
        (24, "services[2].name"),
        (25, "services[2].mode"),
        (30, "services[3].port"),
        (31, "dataplan"),
    ]


def test_fault_of_another_key_is_not_counted_twice(tmp_path: Path) -> None:
    """A wrong VIP makes the service on it no second fault, nor a wrong mode its encapsulation."""
    file = tmp_path / "file.toml"
    file.write_text(
        LOCAL + 'mode = "L3"\n[[virtual_ips]]\naddress = "10.0.0"\n'
        '[[virtual_ips]]\naddress = "10.0.0.8"\n'
        '[[services]]\nname = "a"\nport = 80\naddress = "10.0.0.9"\nencap = "gue"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_either(Source.read(file))
    assert [problem.key for problem in caught.value.problems] == [
        "local.mode",
        "virtual_ips[0].address",
    ]


def test_json_of_the_program_is_the_problems(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(LOCAL + "node_port = 0\n")
    program = subprocess.run(
        [GALE, "check", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert program.returncode == 2
    answer = json.loads(program.stdout)
    assert answer["ok"] is False
    assert [(each["line"], each["key"]) for each in answer["problems"]] == [(5, "local.node_port")]
