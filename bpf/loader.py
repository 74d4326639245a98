"""From a compiled image to programs in the kernel.

`compile_programs` has the sources compiled (or finds them in the cache; compiler.py), gives them
their maps, and hands out objects that load a program when it is asked for. Given `PinnedMaps`,
those in use are adopted (pins.py has the rules), and nothing is pinned before the caller commits;
without it the objects of one call share maps of their own, as tests want them.

Programs are loaded by our own BPF_PROG_LOAD: bcc's takes no flags, and a device with a large MTU
takes only programs that say they know of fragments (`XDP_HAS_FRAGS`).

Failures: `CompileError` has the compiler's words, `syscall.VerifierError` the verifier's,
`pins.PinMismatch` the maps that cannot be reused and both of their shapes. After any of them the
programs and pins that were there are as they were.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from bpf.compiler import (
    SOURCE_DIR,
    CompileError,
    Image,
    compile_images,
    inline,
)
from bpf.pins import PinnedMaps
from bpf.syscall import MapType, ProgramFlag, ProgramKind, load_program
from bpf.table import Table

__all__ = [
    "SOURCE_DIR",
    "CompileError",
    "LoadedObject",
    "compile_program",
    "compile_programs",
    "fill_cache",
    "inline",
]

_KINDS = {"xdp": ProgramKind.XDP, "tc": ProgramKind.TC}


class Maps(Protocol):
    """Who has maps by name."""

    def fd(self, name: str) -> int: ...


class LoadedObject:
    """One compiled source: its maps are in the kernel, its programs are loaded when asked for.

    `bpf[b"est"]` is a `Table`, with `Key` and `Leaf` as the C source declares them. The fds of
    maps and programs live as long as this object; what is pinned or attached lives on.
    """

    def __init__(self, image: Image, maps: Maps) -> None:
        self._image = image
        self._fds = {name: os.dup(maps.fd(name)) for name in image.maps}
        self._programs: dict[tuple[str, ProgramFlag], int] = {}
        self.bpf = {
            name.encode(): Table(self._fds[name], entry.info, entry.key, entry.value)
            for name, entry in image.maps.items()
            if entry.info.type != MapType.RINGBUF
        }
        self.rings = {
            name: self._fds[name]
            for name, entry in image.maps.items()
            if entry.info.type == MapType.RINGBUF
        }
        """Ring buffers: their fds, which are this object's."""
        self.diagnostics = image.diagnostics
        """The compiler's warnings; empty when it had none."""

    def function(self, name: str, kind: Literal["xdp", "tc"], *, frags: bool = False) -> int:
        """The fd of the function as a loaded program; raises `VerifierError`.

        `frags` (XDP): the program may see packets whose bytes are not all in one piece, which a
        device with an MTU beyond about 3.5 kB insists on.
        """
        flags = ProgramFlag.XDP_HAS_FRAGS if frags else ProgramFlag.NONE
        if (name, flags) not in self._programs:
            instructions = self._image.functions[name].linked(self._fds)
            self._programs[name, flags] = load_program(
                name, _KINDS[kind], instructions, self._image.licence.encode(), flags
            )
        return self._programs[name, flags]

    def close(self) -> None:
        """Give back the fds. Nothing that is pinned or attached is touched."""
        for fd in (*self._programs.values(), *self._fds.values()):
            os.close(fd)
        self._programs.clear()
        self._fds.clear()


def compile_programs(
    source_files: Sequence[str],
    *,
    maps: PinnedMaps | None = None,
    defines: Mapping[str, str | int] | None = None,
    cache_dir: Path | None = None,
) -> list[LoadedObject]:
    """Compile files of bpf/ (or absolute paths) side by side; with `maps`, adopt what is pinned.

    Nothing is pinned or attached by this. Raises `CompileError`, `pins.PinMismatch`.
    """
    images = compile_images([SOURCE_DIR / name for name in source_files], defines or {}, cache_dir)
    if maps is not None:
        return _load(images, maps)
    private = PinnedMaps(None)
    try:
        return _load(images, private)
    finally:
        private.close()


def _load(images: Sequence[Image], maps: PinnedMaps) -> list[LoadedObject]:
    for image in images:
        maps.adopt({name: entry.info for name, entry in image.maps.items()})
    return [LoadedObject(image, maps) for image in images]


def fill_cache(
    source_files: Sequence[str], defines: Mapping[str, str | int], cache_dir: Path
) -> None:
    """Compile now what `compile_programs` will be asked for later, so that it takes no time then.

    Raises nothing: what does not compile is told when it is wanted.
    """
    with contextlib.suppress(CompileError):
        compile_images([SOURCE_DIR / name for name in source_files], defines, cache_dir)


def compile_program(
    source_file: str,
    *,
    maps: PinnedMaps | None = None,
    defines: Mapping[str, str | int] | None = None,
    cache_dir: Path | None = None,
) -> LoadedObject:
    """`compile_programs` of one."""
    return compile_programs([source_file], maps=maps, defines=defines, cache_dir=cache_dir)[0]
