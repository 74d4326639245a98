"""From C source to loaded programs: one text, compiled by bcc, on any kernel, without its headers.

bcc rewrites `map.lookup()` and friends in the main file only, so `inline` makes one text of a
program and its own headers, each where it is first included, with `#line` marks: an error names
the file and line a person wrote. System headers (`<linux/...>`) are left to the compiler; they come
from linux-libc-dev, and what bcc itself would take from the running kernel's headers from
`bpf/stubs`.

bcc makes every map new. Given `PinnedMaps`, those in use take their place (pins.py has the rules);
without it a compiled object keeps maps of its own, as tests want them.

Programs are loaded by our own BPF_PROG_LOAD: bcc's takes no flags, and a device with a large MTU
takes only programs that say they know of fragments (`XDP_HAS_FRAGS`).

Failures: `CompileError` has the compiler's words, `bpf_syscall.VerifierError` the verifier's,
`pins.PinMismatch` the maps that cannot be reused and both of their shapes.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from platform import machine
from typing import Any, Literal

from services.dataplane.bpf_syscall import ProgramFlag, ProgramKind, load_program
from services.dataplane.pins import PinnedMaps

SOURCE_DIR = Path(str(files("bpf")))
_STUBS = SOURCE_DIR / "stubs"
_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
_KINDS = {"xdp": ProgramKind.XDP, "tc": ProgramKind.TC}


class CompileError(Exception):
    """The compiler refused a program; the message is what it said."""


def inline(path: Path) -> str:
    """The text of `path` with each `#include "..."` replaced by that file, once each.

    A name is looked for beside the file that includes it, then in bpf/.
    """
    return "\n".join(_inlined_lines(path.resolve(), set())) + "\n"


def _inlined_lines(path: Path, seen: set[Path]) -> Iterator[str]:
    seen.add(path)
    yield f'#line 1 "{path}"'
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = _INCLUDE.match(line)
        if match is None:
            yield line
            continue
        header = _find_header(match[1], path, number)
        if header not in seen:
            yield from _inlined_lines(header, seen)
        yield f'#line {number + 1} "{path}"'


def _find_header(name: str, included_from: Path, line: int) -> Path:
    for directory in (included_from.parent, SOURCE_DIR):
        header = (directory / name).resolve()
        if header.is_file():
            return header
    raise CompileError(f"{included_from}:{line}: no such header: {name}")


class LoadedObject:
    """One compiled source: its maps are in the kernel, its programs are loaded when asked for.

    `bpf[b"est"]` is bcc's table, with `Key` and `Leaf` as the C source declares them. The fds of
    maps and programs live as long as this object; what is pinned or attached lives on.
    """

    def __init__(self, bpf: Any, diagnostics: str) -> None:
        self.bpf = bpf
        self.diagnostics = diagnostics
        """The compiler's warnings; empty when it had none."""
        self._programs: dict[tuple[str, ProgramFlag], int] = {}

    def function(self, name: str, kind: Literal["xdp", "tc"], *, frags: bool = False) -> int:
        """The fd of the function as a loaded program; raises `VerifierError`.

        `frags` (XDP): the program may see packets whose bytes are not all in one piece, which a
        device with an MTU beyond about 3.5 kB insists on.
        """
        flags = ProgramFlag.XDP_HAS_FRAGS if frags else ProgramFlag.NONE
        if (name, flags) not in self._programs:
            from bcc import lib

            instructions = self.bpf.dump_func(name.encode())
            licence = lib.bpf_module_license(self.bpf.module)
            self._programs[name, flags] = load_program(
                name, _KINDS[kind], instructions, licence, flags
            )
        return self._programs[name, flags]

    def close(self) -> None:
        """Give back the fds. Nothing that is pinned or attached is touched."""
        for fd in self._programs.values():
            os.close(fd)
        self._programs.clear()
        self.bpf.cleanup()


def compile_program(
    source_file: str,
    *,
    maps: PinnedMaps | None = None,
    defines: Mapping[str, str | int] | None = None,
) -> LoadedObject:
    """Compile a file of bpf/ (or an absolute path); with `maps`, adopt what is pinned.

    Nothing is pinned or attached by this. Raises `CompileError`, `pins.PinMismatch`.
    """
    text = inline(SOURCE_DIR / source_file)
    flags = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    bpf, diagnostics = _compile(text, flags)
    if maps is not None:
        maps.adopt(_map_fds(bpf))
    return LoadedObject(bpf, diagnostics)


def _map_fds(bpf: Any) -> dict[str, int]:
    from bcc import lib

    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    names = [lib.bpf_table_name(bpf.module, index) for index in range(_table_count(bpf))]
    return {name.decode(): lib.bpf_table_fd(bpf.module, name) for name in names}


def _table_count(bpf: Any) -> int:
    from bcc import lib

    lib.bpf_num_tables.restype = ctypes.c_ulonglong
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    return int(lib.bpf_num_tables(bpf.module))


def _compile(text: str, flags: list[str]) -> tuple[Any, str]:
    # Imported late: it loads LLVM, which costs 40 MB, and only who compiles should pay for it.
    from bcc import BPF

    os.environ["BCC_KERNEL_SOURCE"] = str(_STUBS)
    with _standard_error() as said:
        try:
            bpf = BPF(text=text.encode(), cflags=[*_fixed_flags(), *flags])
        except Exception as error:
            # bcc raises bare Exceptions whose text says only that it failed.
            raise CompileError(said() or str(error)) from None
        return bpf, said()


def _fixed_flags() -> list[str]:
    return [
        "-isystem",
        "/usr/include",
        "-isystem",
        f"/usr/include/{machine()}-linux-gnu",
        "-U__KERNEL__",
        "-D__LINUX_BPF_H__",
        "-Wno-macro-redefined",
    ]


@contextmanager
def _standard_error() -> Iterator[Any]:
    """Catch what the compiler, a C++ library, writes to fd 2; yields a function that reads it."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as catcher:

        def said() -> str:
            catcher.seek(0)
            return catcher.read().decode(errors="replace").strip()

        kept = os.dup(2)
        os.dup2(catcher.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
