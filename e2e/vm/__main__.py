"""`make vm`, on the host; see the package's docstring. Exit status 0: everything was shown."""

from __future__ import annotations

import sys

from e2e.vm.host import VmError, boot, compile_all, fetch_kernel, pack_first_files

FAILED = 1


def main() -> int:
    try:
        kernel = fetch_kernel(print)
        compile_all(print)
        return boot(kernel, pack_first_files(kernel), print)
    except VmError as error:
        print(error, file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
