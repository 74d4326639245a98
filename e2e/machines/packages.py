"""The packages of `make deb`, and the same ones of a newer version."""

from __future__ import annotations

import shutil
from pathlib import Path

from e2e.lab.plan import CHECKOUT_DIR
from e2e.machines.machine import call

PACKAGES = CHECKOUT_DIR / "build" / "deb"
NEWER = CHECKOUT_DIR / "build" / "deb-newer"


def repack(packages: Path, into: Path, version: str, newer: str) -> None:
    """The same packages under a newer version."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for package in packages.glob("gale-*.deb"):
        stage = into / "stage"
        call("dpkg-deb", "--raw-extract", package, stage)
        control = stage / "DEBIAN" / "control"
        control.write_text(control.read_text().replace(version, newer))
        name = package.name.replace(version, newer)
        call("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", stage, into / name)
        shutil.rmtree(stage)
