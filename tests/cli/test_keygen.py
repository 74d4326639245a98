"""`gale keygen` and what it leaves on the disk."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import zmq
from typer.testing import CliRunner, Result

from bus import keys
from services.cli.main import app


def _keygen(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["keygen", *map(str, arguments)])


def _modes(directory: Path) -> set[tuple[bool, int]]:
    paths = [directory, *directory.rglob("*")]
    return {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}


def test_keys_of_this_machine(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    result = _keygen(directory, "--json")
    assert result.exit_code == 0
    (machine,) = json.loads(result.stdout)["machines"]
    secret = (directory / keys.SECRET).read_bytes().strip()
    assert zmq.curve_public(secret).decode() == machine["public"]
    assert (directory / keys.PUBLIC).read_text().strip() == machine["public"]
    assert _modes(directory) == {(True, 0o700), (False, 0o600)}
    said = _keygen(directory).stdout
    assert machine["public"] in said
    assert (directory / keys.SECRET).read_bytes().strip() == secret, "an existing key is kept"


def test_keys_of_a_cluster(tmp_path: Path) -> None:
    result = _keygen(tmp_path, "--lb", "lb-0", "--lb", "both", "--node", "node-0", "--node", "both")
    assert result.exit_code == 0
    known = {name: keys.KeyDirectory(tmp_path / name) for name in ("lb-0", "both", "node-0")}
    own = {name: each.own.public for name, each in known.items() if each.own is not None}
    assert len(set(own.values())) == 3
    for each in known.values():
        assert [each.name_of(keys.LBS, own[lb]) for lb in ("lb-0", "both")] == ["lb-0", "both"]
    for lb in ("lb-0", "both"):
        assert known[lb].name_of(keys.NODES, own["node-0"]) == "node-0"
        assert known[lb].name_of(keys.NODES, own["both"]) == "both"
        assert known[lb].name_of(keys.NODES, own["lb-0"]) is None
    assert known["node-0"].name_of(keys.NODES, own["both"]) is None, "a node admits no node"
    assert _modes(tmp_path) == {(True, 0o700), (False, 0o600)}

    # One node fewer: it is on no list any more, and the others keep their keys.
    assert _keygen(tmp_path, "--lb", "lb-0", "--lb", "both", "--node", "both").exit_code == 0
    again = keys.KeyDirectory(tmp_path / "lb-0")
    assert again.own == known["lb-0"].own
    assert again.name_of(keys.NODES, own["node-0"]) is None


def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    assert _keygen(tmp_path / "keys", "--lb", "../lb-0").exit_code == 2
    assert not (tmp_path / "keys").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = _keygen(tmp_path / "file" / "keys")
    assert result.exit_code == 1
    assert "Not a directory" in result.stderr
