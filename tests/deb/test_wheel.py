"""The wheel is whole: elsewhere, without the checkout, it checks and compiles what it carries."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deb.build import ROOT

COMPILE = """
import sys
from pathlib import Path
from bpf.compiler import SOURCE_DIR, compile_images
assert SOURCE_DIR.is_relative_to(sys.argv[1]), SOURCE_DIR
names = [str(path) for path in (SOURCE_DIR / "xdp.c", SOURCE_DIR / "tc.c")]
compile_images([Path(name) for name in names], {}, Path(sys.argv[2]))
"""
CHECK = "from services.cli.main import main; import sys; sys.argv = ['gale', *sys.argv[1:]]; main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the wheel has."""
    directory = tmp_path_factory.mktemp("wheel")
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run([sys.executable, *words], check=True)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "installed")
    return directory / "installed"


def run(installed: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=installed.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_supervisord_needs_is_in_it(installed: Path) -> None:
    shipped = {path.name for path in (installed / "conf" / "supervisor").iterdir()}
    assert shipped >= {"gale.conf", "gale-node.conf", "gale-witness.conf", "start"}
    assert (installed / "conf" / "rights.toml").exists()


def test_it_checks_the_file_it_carries(installed: Path) -> None:
    done = run(installed, CHECK, "check", str(installed / "conf" / "lb.toml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_compiles_the_programs_it_carries(installed: Path, tmp_path: Path) -> None:
    done = run(installed, COMPILE, str(installed), str(tmp_path))
    assert done.returncode == 0, done.stderr
