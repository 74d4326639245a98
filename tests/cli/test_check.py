"""`gale check` as an operator types it, and what every command of `gale` has in common.

The wrong files themselves stand in tests/conf/test_bad_files.py, each through the real program.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bus.keys import make_own, write_key
from services.cli.main import COMMANDS, app, program_options_first

GALE = Path(sys.executable).with_name("gale")
SHIPPED = Path(__file__).parent.parent.parent / "conf"

LOOPBACK = """
[local]
net_interface_private = "lo"
net_interface_public = "lo"
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GALE_CONFIG", "GALE_RUN_DIR", "GALE_STATE_DIR", "GALE_BPF_DIR"):
        monkeypatch.delenv(variable, raising=False)


def _gale(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "file.toml"
    file.write_text(text)
    return file


def test_good_files_exit_0() -> None:
    for name, whose in (("lb.toml", "a load balancer"), ("node.toml", "a node")):
        result = _gale("check", SHIPPED / name)
        assert (result.exit_code, result.stderr) == (0, "")
        assert whose in result.stdout


def test_json_of_a_good_file() -> None:
    file = SHIPPED / "node.toml"
    result = _gale("check", file, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "file": str(file),
        "kind": "node",
        "ok": True,
        "problems": [],
    }


def test_long_lines_are_not_wrapped(tmp_path: Path) -> None:
    file = _file(tmp_path, LOOPBACK + f'name = "{"a" * 64}"\n' + "checks = 1\n")
    result = _gale("check", file)
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 2


def test_without_a_file_the_one_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _file(tmp_path, LOOPBACK)
    monkeypatch.setenv("GALE_CONFIG", str(file))
    assert str(file) in _gale("check").stdout
    other = tmp_path / "other.toml"
    result = _gale("check", "-c", other)
    assert result.exit_code == 2
    assert f"{other}:1: file: " in result.stdout


def test_program_options_stand_anywhere(tmp_path: Path) -> None:
    file = str(_file(tmp_path, LOOPBACK))
    for arguments in (
        ["-c", file, "--json", "check"],
        ["check", "-c", file, "--json"],
        ["--json", "check", "-c", file],
    ):
        result = _gale(*arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["file"] == file


def test_program_options_end_where_another_command_begins() -> None:
    arguments = ["lab", "exec", "client", "--json", "--", "sh", "-c", "true", "--json"]
    assert program_options_first(arguments) == [
        "--json", "lab", "exec", "client", "--", "sh", "-c", "true", "--json",
    ]  # fmt: skip
    assert program_options_first(["check", "-c"]) == ["-c", "check"]


@pytest.mark.parametrize(
    "arguments",
    [["chek"], ["check", "--hots"], ["check", "a", "b"], ["check", "-c"], ["--nonsense"]],
    ids=" ".join,
)
def test_wrong_use_exits_2(arguments: list[str]) -> None:
    result = _gale(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage" in result.stderr


def test_every_command_is_there_and_has_help() -> None:
    listed = _gale("--help").stdout
    for name in COMMANDS:
        assert name in listed
        result = _gale(name, "--help")
        assert result.exit_code == 0, result.output
        assert "--json work here too" in " ".join(result.stdout.split())


def test_check_imports_no_other_command() -> None:
    """A check of a small file waits neither for HTTP nor for the bus nor for netlink."""
    script = (
        "import sys; from services.cli.main import app\n"
        "try: app(['check', sys.argv[1]])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "slow = {'httpx', 'zmq', 'pyroute2', 'fastapi', 'numpy', 'services.cli.lab', 'e2e.lab'}\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)\n"
    )
    program = subprocess.run(
        [sys.executable, "-c", script, str(SHIPPED / "lb.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.returncode == 0, program.stderr


def test_real_program_exits_0() -> None:
    program = subprocess.run(
        [GALE, "check", SHIPPED / "lb.toml"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert (program.returncode, program.stderr) == (0, "")


# --------------------------------------------------------------------------- --host


@pytest.fixture
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only addresses resolve: no test waits for somebody's name server."""
    resolve = socket.getaddrinfo

    def numeric(host: str, port: int, *, family: int) -> Any:
        return resolve(host, port, family=family, flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr(socket, "getaddrinfo", numeric)


def _host_problems(file: Path) -> tuple[int, list[tuple[int, str, str]]]:
    result = _gale("check", file, "--host", "--json")
    problems = json.loads(result.stdout)["problems"]
    return result.exit_code, [(each["line"], each["key"], each["message"]) for each in problems]


def test_host_that_has_everything(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_own(keys)
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a token\n")
    file = _file(
        tmp_path,
        LOOPBACK
        + '[load_balancer_quorum]\naddresses = [{ ip = "127.0.0.1", port = 8081 }]\n'
        + f'[security]\nkeys = "{keys}"\napi_token_file = "{token}"\n',
    )
    assert _host_problems(file) == (0, [])


def test_host_without_the_interfaces(tmp_path: Path) -> None:
    text = '[local]\nnet_interface_private = "absent0"\nnet_interface_public = "absent1"\n'
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 1
    assert [(line, key) for line, key, _ in problems] == [
        (2, "local.net_interface_private"),
        (3, "local.net_interface_public"),
    ]
    names = {name for _, name in socket.if_nameindex()}
    assert '"absent0" is no interface' in problems[0][2]
    assert min(names) in problems[0][2]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_host_that_listens_on_a_services_port(tmp_path: Path, kind: socket.SocketKind) -> None:
    protocol = "tcp" if kind is socket.SOCK_STREAM else "udp"
    with socket.socket(socket.AF_INET, kind) as ours:
        ours.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            ours.listen()
        port = ours.getsockname()[1]
        service = f'[[services]]\nname = "web"\nport = "{port - 1}-{port}"\n'
        other = "udp" if protocol == "tcp" else "tcp"
        assert _host_problems(_file(tmp_path, f'{LOOPBACK}{service}protocol = "{other}"\n'))[0] == 0
        code, problems = _host_problems(
            _file(tmp_path, f'{LOOPBACK}{service}protocol = "{protocol}"\n')
        )
    assert code == 1
    ((line, key, message),) = problems
    assert (line, key) == (7, "services[0].port")
    assert f"{protocol} 127.0.0.1:{port}: this machine listens there itself" in message


def test_host_on_whose_address_two_services_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.host.own_address", lambda _: "198.51.100.9")
    text = (
        f'{LOOPBACK}[[services]]\nname = "a"\nport = 8079\n'
        '[[services]]\nname = "b"\nport = "8070-8079"\naddress = "198.51.100.9"\n'
    )
    file = _file(tmp_path, text)
    code, problems = _host_problems(file)
    assert [(line, key) for line, key, _ in problems] == [(10, "services[1].port")]
    assert "is also a's" in problems[0][2]
    assert code == 1


@pytest.mark.usefixtures("_no_names")
@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_host_whose_own_address_nodes_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """On one interface that is where they reach it; another address may be had by them."""
    interfaces = {"lo": {"127.0.0.1", "198.51.100.9"}}
    monkeypatch.setattr("services.cli.host.own_addresses", lambda: interfaces)
    service = '[[services]]\nname = "a"\naddress = "{}"\nport = 1\nmode = "{}"\n'
    file = _file(tmp_path, LOOPBACK + service.format("198.51.100.9", mode))
    code, problems = _host_problems(file)
    assert code == 1
    ((line, key, message),) = problems
    assert (line, key) == (7, "services[0].address")
    assert message.startswith(f'mode "{mode}" on one interface, and 198.51.100.9 is its own, ')
    for right in (("198.51.100.9", "l4"), ("198.51.100.10", mode)):
        file = _file(tmp_path, LOOPBACK + service.format(*right))
        assert _host_problems(file) == (0, [])


def test_host_that_is_not_in_the_list(tmp_path: Path) -> None:
    text = (
        LOOPBACK + '[load_balancer_quorum]\naddresses = [\n{ ip = "198.51.100.1", port = 8081 },\n'
        '{ hostname = "absent.invalid", port = 8081 }]\n'
    )
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 1
    assert [(line, key) for line, key, _ in problems] == [
        (6, "load_balancer_quorum.addresses"),
        (8, "load_balancer_quorum.addresses[1].hostname"),
    ]
    assert "no address of this machine" in problems[0][2]


def test_host_whose_keys_others_may_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_own(keys)
    keys.chmod(0o755)
    (keys / "own.secret").chmod(0o644)
    (keys / "nodes" / "node-0.public").write_text("no key\n")
    (keys / "nodes" / "node-0.public").chmod(0o600)
    file = _file(tmp_path, LOOPBACK + f'[security]\nkeys = "{keys}"\n')
    code, problems = _host_problems(file)
    assert code == 1
    assert {(line, key) for line, key, _ in problems} == {(6, "security.keys")}
    assert {message for *_, message in problems} == {
        f"{keys} has mode 0755, expected 0700",
        f"{keys}/own.secret has mode 0644, expected 0600",
        f"{keys}/nodes/node-0.public: expected one key to a line, each of 40 characters",
    }


def test_host_whose_keys_are_anothers(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_own(keys)
    os.chown(keys / "own.secret", 4_321, -1)
    token = tmp_path / "token"
    token.write_text("a token\n")
    token.chmod(0o600)
    os.chown(token, 4_321, -1)
    text = f'{LOOPBACK}[security]\nkeys = "{keys}"\napi_token_file = "{token}"\n'
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 1
    assert [(line, key) for line, key, _ in problems] == [
        (6, "security.keys"),
        (7, "security.api_token_file"),
    ]
    assert all("belongs to user 4321, expected" in message for *_, message in problems)


@pytest.mark.parametrize(
    ("begin", "reader"),
    [
        (LOOPBACK, "gale-api"),
        ('[load_balancer]\naddresses = [{ ip = "127.0.0.1", port = 7070 }]\n', "gale-agent"),
    ],
)
def test_a_token_belongs_to_the_user_who_reads_it_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: str, reader: str
) -> None:
    def named(name: str) -> Any:
        if name != reader:
            raise KeyError(name)
        return SimpleNamespace(pw_uid=4_321)

    monkeypatch.setattr("services.cli.host.pwd.getpwnam", named)
    token = tmp_path / "token"
    token.write_text("a token\n")
    token.chmod(0o600)
    file = _file(tmp_path, f'{begin}[security]\napi_token_file = "{token}"\n')
    _, ((_, key, message),) = _host_problems(file)
    assert key == "security.api_token_file"
    assert message == f"{token} belongs to user 0, expected {reader}"
    os.chown(token, 4_321, -1)
    assert _host_problems(file) == (0, [])


def test_host_without_the_key_of_another_lb(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    own = make_own(keys)
    assert own is not None
    write_key(keys / "lbs" / "lb-2.public", own.public)
    entries = (
        '{ ip = "127.0.0.1", port = 8081 },\n{ ip = "198.51.100.1", port = 8081 },\n'
        '{ ip = "198.51.100.2", port = 8081, name = "lb-2" },\n'
        '{ ip = "198.51.100.3", port = 8081, name = "lb-3" }'
    )
    text = (
        f'{LOOPBACK}[security]\nkeys = "{keys}"\n'
        f"[load_balancer_quorum]\naddresses = [\n{entries}]\n"
    )
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 1
    assert [(line, key) for line, key, _ in problems] == [
        (10, "load_balancer_quorum.addresses[1]"),
        (12, "load_balancer_quorum.addresses[3]"),
    ]
    assert f'expected {keys}/lbs/198.51.100.1.public, or name = "..." here' in problems[0][2]
    assert problems[1][2] == f"no key of 198.51.100.3, expected {keys}/lbs/lb-3.public"


def test_node_without_the_key_of_its_lb(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_own(keys)
    text = (
        '[load_balancer]\naddresses = [{ ip = "127.0.0.1", port = 7070 }]\n'
        f'[node]\nname = "node-0"\n[security]\nkeys = "{keys}"\n'
    )
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 1
    assert [(line, key) for line, key, _ in problems] == [(2, "load_balancer.addresses[0]")]


def test_host_without_its_keys(tmp_path: Path) -> None:
    text = LOOPBACK + f'[security]\nkeys = "{tmp_path}/keys"\napi_token_file = "{tmp_path}/token"\n'
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 1
    assert [(line, key) for line, key, _ in problems] == [
        (6, "security.keys"),
        (7, "security.api_token_file"),
    ]


def test_host_that_has_the_vip_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces = {"lo": {"127.0.0.1", "198.51.100.9"}}
    monkeypatch.setattr("services.cli.host.own_addresses", lambda: interfaces)
    file = _file(tmp_path, LOOPBACK + '[[virtual_ips]]\naddress = "198.51.100.9"\n')
    code, problems = _host_problems(file)
    assert code == 1
    ((line, key, message),) = problems
    assert (line, key) == (6, "virtual_ips[0].address")
    assert "never an address of the machine" in message


@pytest.mark.usefixtures("_no_names")
def test_node_whose_lb_has_no_address(tmp_path: Path) -> None:
    text = '[load_balancer]\naddresses = [\n{ hostname = "absent.invalid", port = 7070 }]\n'
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 1
    assert [(line, key) for line, key, _ in problems] == [
        (3, "load_balancer.addresses[0].hostname")
    ]


def test_host_is_not_asked_about_a_bad_file(tmp_path: Path) -> None:
    text = '[local]\nnet_interface_private = "absent0"\nnet_interface_public = 1\n'
    code, problems = _host_problems(_file(tmp_path, text))
    assert code == 2
    assert [(line, key) for line, key, _ in problems] == [(3, "local.net_interface_public")]
