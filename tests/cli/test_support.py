"""`gale support`: what is in the archive, and what is not."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.cli.support import LEFT_OUT, without
from tests.cli.conftest import Gale
from tests.cli.files import LB_CONFIG
from tests.cli.local_api import ANSWERS, LocalApi
from tests.cli.network import Namespace

TOKEN, KEY = "tok-5f1d9c3e77", "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    directory = tmp_path / "log"
    directory.mkdir()
    line = f"Authorization: Bearer {TOKEN} and {KEY}, or Bearer another-one"
    (directory / "api.log").write_text(f"{line}\nthe end\n")
    return directory


@pytest.fixture
def secret_config(config: Path, api: LocalApi, tmp_path: Path) -> Path:
    token, keys = tmp_path / "token", tmp_path / "keys"
    token.write_text(f"{TOKEN}\n")
    keys.mkdir(0o700)
    (keys / "lb.key").write_text(f'curve\n    secret-key = "{KEY}"\n')
    config.write_text(
        f"# {TOKEN}\n{LB_CONFIG}api_port = {api.port}\n"
        f'[security]\nkeys = "{keys}"\napi_token_file = "{token}"\n'
    )
    return config


def parts_of(file: Path) -> dict[str, str]:
    with tarfile.open(file) as archive:
        return {
            member.name.removeprefix("gale-support/"): _text(archive, member)
            for member in archive.getmembers()
        }


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    held = archive.extractfile(member)
    assert held is not None
    return held.read().decode()


def test_it_holds_what_a_report_needs_and_no_secret(
    api: LocalApi, gale: Gale, secret_config: Path, tmp_path: Path, logs: Path
) -> None:
    api.paths["/v1/events"] = {"events": [{"topic": "node.up.", "data": TOKEN}], "next": "a:1"}
    api.paths["/metrics"] = lambda handler, _: handler.send_raw(b"gale_quorum_term 7\n")
    file = tmp_path / "support.tar.gz"
    result = gale("support", str(file), "--logs", str(logs))
    assert result.exit_code == 0, result.output
    assert file.stat().st_mode & 0o777 == 0o600
    parts = parts_of(file)
    assert orjson.loads(parts["status.json"]) == ANSWERS["/v1/status"]
    assert parts["metrics.txt"] == "gale_quorum_term 7\n"
    assert parts["versions.txt"].count("\n") > 5
    assert parts["logs/api.log"].endswith("the end\n")
    assert f"Bearer {LEFT_OUT} and {LEFT_OUT}, or Bearer {LEFT_OUT}" in parts["logs/api.log"]
    assert "net_interface_private" in parts["config.toml"]
    assert orjson.loads(parts["doctor.json"])
    assert "flows.json" not in parts
    whole = "".join(parts.values())
    assert not [secret for secret in (TOKEN, KEY, "another-one") if secret in whole]


def test_what_is_not_to_be_had_is_named(gale: Gale, api: LocalApi, tmp_path: Path) -> None:
    api.stop()
    file = tmp_path / "support.tar.gz"
    result = gale("support", str(file), "--json", "--logs", str(tmp_path / "nowhere"))
    assert result.exit_code == 0
    told: dict[str, Any] = orjson.loads(result.stdout)
    assert any(line.startswith("status.json: ") for line in told["missing"])
    assert "versions.txt" in told["parts"]
    assert "status.json" in parts_of(file)["missing.txt"]


def test_maps_are_told_by_shape(namespace: Namespace) -> None:
    from bpf.syscall import MapType, create_map, pin_object, update_entry

    fd = create_map("sources", MapType.HASH, 4, 8, 16, 0)
    update_entry(fd, b"abcd", bytes(8))
    (namespace.bpf_dir / "maps").mkdir(parents=True)
    pin_object(fd, namespace.bpf_dir / "maps" / "sources")
    file = namespace.directory / "support.tar.gz"
    assert namespace.gale("support", str(file)).returncode == 0
    (told,) = orjson.loads(parts_of(file)["maps.json"]).values()
    assert (told["type"], told["max_entries"], told["entries"]) == ("hash", 16, 1)


def test_a_place_that_cannot_be_written(gale: Gale, tmp_path: Path) -> None:
    result = gale("support", str(tmp_path / "no" / "support.tar.gz"))
    assert result.exit_code == 1
    assert "choose another place" in result.stderr


def test_a_secret_within_another_word() -> None:
    assert without(f"x{TOKEN}y", [TOKEN]) == f"x{LEFT_OUT}y"
