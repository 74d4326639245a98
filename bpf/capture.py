"""The programs that show packets: the same source with GALE_CAPTURE, over the maps in use.

They do all that the ordinary programs do, to the very flows, and besides hand each packet that a
filter wants to user space, as it came and as it left, with the reason (bpf/kernel/capture.h). Who
owns the hooks attaches them in the place of the ordinary programs and puts those back afterwards;
maps of their own hold the filter, the packet on its way, and the ring of records.

    programs = CapturePrograms(living, defines, cache_dir)
    programs.load(["xdp_public", "tc_public"], frags=False)
    programs.set_up(Setup(until_ns, reasons, hooks, kept=256, terms=()))
    ... attach programs.xdp and programs.tc ...
    ring = RecordRing(programs.ring_fd, map_shape(programs.ring_fd)[3])
    for record in ring.take():
        passage = read_passage(record)

**Off by itself**: after `until_ns` they show nothing, whoever has died.

Failures: `CompileError` and `VerifierError` as in loader.py; `ValueError` where a living map has
another shape than the source declares.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from bpf.compiler import SOURCE_DIR, Image, compile_images
from bpf.loader import LoadedObject
from bpf.passage import MOST_KEPT, Part, Setup
from bpf.pins import PinnedMaps, map_info
from bpf.syscall import ProgramKind, lookup_entry, possible_cpus
from bpf.trace import HOOKS

OWN = ("capture_setup", "passing", "capture_lost", "captured")
SOURCES = ("xdp.c", "tc.c")
PROGRAMS = HOOKS | {"tc_own": ("gale_tc_own", ProgramKind.TC)}
"""By the name of the pin: that one counts and shows what it sees as `tc_private` does."""
_FIRST = bytes(4)


class CapturePrograms:
    """`living`: by name, the fds of the maps that the ordinary programs use; they are borrowed.

    `defines`: those that the ordinary programs were compiled with.
    """

    def __init__(
        self, living: Mapping[str, int], defines: Mapping[str, str | int], cache_dir: Path | None
    ) -> None:
        sources = [SOURCE_DIR / name for name in SOURCES]
        images = compile_images(sources, {**defines, "GALE_CAPTURE": 1}, cache_dir)
        _check(images, living)
        with _Maps(living, PinnedMaps(None)) as maps:
            own = images[0].maps
            maps.own.adopt({name: own[name].info for name in OWN})
            self.xdp, self.tc = (LoadedObject(image, maps) for image in images)
        self._setup = self.xdp.bpf[b"capture_setup"]
        self.ring_fd = self.xdp.rings["captured"]

    def load(self, hooks: Collection[str], *, frags: bool) -> None:
        """Have the kernel look at the programs of these hooks; `function` has them at once then.

        `frags`: as `LoadedObject.function` takes it, for XDP.
        """
        for hook in hooks:
            name, kind = PROGRAMS[hook]
            if kind is ProgramKind.XDP:
                self.xdp.function(name, "xdp", frags=frags)
            else:
                self.tc.function(name, "tc")

    def set_up(self, setup: Setup) -> None:
        """Set what is shown; the programs look at it from the next packet on."""
        leaf = self._setup.Leaf()
        leaf.until_ns, leaf.reasons = setup.until_ns, setup.reasons
        leaf.hooks, leaf.kept = setup.hooks, min(setup.kept, MOST_KEPT)
        for place, term in zip(leaf.terms, setup.terms, strict=False):
            place.part, place.sides = term.part, term.sides
            place.address = int.from_bytes(term.address, sys.byteorder)
            place.mask = int.from_bytes(term.mask, sys.byteorder)
            if term.part is Part.PROTOCOL:
                place.protocol = term.number
            else:
                place.number = int.from_bytes(term.number.to_bytes(2, "big"), sys.byteorder)
        self._setup[0] = leaf

    @property
    def lost(self) -> int:
        """Passages that found the ring full."""
        raw = lookup_entry(self.xdp.bpf[b"capture_lost"].map_fd, _FIRST, 8 * possible_cpus()) or b""
        return sum(struct.unpack(f"={len(raw) // 8}Q", raw))

    def close(self) -> None:
        """Give back the fds. What is attached goes on until something takes its place."""
        self.xdp.close()
        self.tc.close()


class _Maps:
    """Those in use, and the programs' own."""

    def __init__(self, living: Mapping[str, int], own: PinnedMaps) -> None:
        self._living, self.own = living, own

    def fd(self, name: str) -> int:
        return self.own.fd(name) if name in OWN else self._living[name]

    def __enter__(self) -> _Maps:
        return self

    def __exit__(self, *_: object) -> None:
        """The programs hold what they use."""
        self.own.close()


def _check(images: list[Image], living: Mapping[str, int]) -> None:
    for image in images:
        for name, declared in image.maps.items():
            if name in OWN:
                continue
            here = map_info(living[name])
            if here != declared.info:
                raise ValueError(f"{name}: {here.differences(declared.info)}")
