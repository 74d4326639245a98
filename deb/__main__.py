"""`python -m deb`: build the Debian packages of this checkout; see the package's docstring."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from deb.build import ROOT, build, checkout_version


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deb", description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "deb")
    parser.add_argument("--version", default=checkout_version())
    arguments = parser.parse_args()
    try:
        for path in build(arguments.into, arguments.version):
            print(path)
    except subprocess.CalledProcessError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
