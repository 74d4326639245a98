"""From C source to an `Image`: instructions and the shapes of maps, free of the compiler.

bcc brings LLVM along, which costs its process some 130 MB for good and a second for each start.
So it runs in child processes (`python -m bpf.compiler`), one per source, side by
side, and what they hand back is plain data: the programs' instructions with the places where a
map's fd belongs, and of each map the shape and the C layout of key and value. `loader.py` makes
programs of it.

Images are kept in a cache directory under the hash of all that went in, so that a restart does not
compile. A damaged or unwritable cache costs time, nothing else.

bcc rewrites `map.lookup()` and friends in the main file only; so `inline` makes one text of a
program and its own headers, each where it is first included, with `#line` marks: an error names
the file and line a person wrote. System headers (`<linux/...>`) are left to the compiler; they come
from linux-libc-dev, and what bcc itself would take from the running kernel's headers from
`bpf/stubs`.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from platform import machine
from typing import Any

from bpf.pins import MapInfo, layout_fingerprint

SOURCE_DIR = Path(str(files("bpf"))) / "kernel"
_STUBS = SOURCE_DIR.parent / "stubs"
_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
_IMAGE_FORMAT = 2
_IMAGES_KEPT = 256
"""Those that were used last; one has up to a quarter of a megabyte."""

SIZES = {"flows": "FLOW_BUCKETS", "old_flows": "OLD_FLOW_BUCKETS", "ring": "RING_MAP_ENTRIES"}
"""Maps that are declared with one entry, and the -D that says how many they really have: bcc makes
every map that it compiles, and of these that would take seconds and gigabytes."""
DEFAULT_SIZES: dict[str, str | int] = {
    "FLOW_BUCKETS": 65_536,
    "OLD_FLOW_BUCKETS": 1,
    "RING_MAP_ENTRIES": 16 * 16_385,
}

_INSTRUCTION_BYTES = 8
_LOAD_DOUBLE_WORD = 0x18
_SOURCE_IS_MAP_FD = 1


class CompileError(Exception):
    """The compiler refused a program; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Function:
    """One program. `maps`: number of an instruction → name of the map whose fd it loads."""

    code: bytes
    maps: dict[int, str]

    def linked(self, fds: Mapping[str, int]) -> bytes:
        """The instructions with the fds of these maps."""
        code = bytearray(self.code)
        for number, name in self.maps.items():
            at = number * _INSTRUCTION_BYTES + 4
            code[at : at + 4] = fds[name].to_bytes(4, sys.byteorder)
        return bytes(code)


@dataclass(frozen=True, slots=True)
class MapDeclaration:
    """A map as the source declares it. `key` and `value`: their C layout in bcc's JSON."""

    info: MapInfo
    key: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Image:
    """All that the compiler made of one source."""

    functions: dict[str, Function]
    maps: dict[str, MapDeclaration]
    licence: str
    diagnostics: str
    """Its warnings; empty when it had none."""


# --------------------------------------------------------------------------- one text


def inline(path: Path) -> str:
    """The text of `path` with each `#include "..."` replaced by that file, once each.

    A name is looked for beside the file that includes it, then in bpf/kernel/.
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


# --------------------------------------------------------------------------- images, and the cache


def compile_images(
    sources: Sequence[Path], defines: Mapping[str, str | int], cache_dir: Path | None = None
) -> list[Image]:
    """Compile each source that the cache does not have, side by side; raises `CompileError`.

    The maps of `SIZES` have the size that `defines` says, by default that of `DEFAULT_SIZES`.
    """
    defines = DEFAULT_SIZES | dict(defines)
    images = _compiled(sources, defines, cache_dir)
    return [_sized(image, defines) for image in images]


def _sized(image: Image, defines: Mapping[str, str | int]) -> Image:
    maps = dict(image.maps)
    for name, define in SIZES.items():
        if name in maps:
            info = replace(maps[name].info, max_entries=int(defines[define]))
            maps[name] = replace(maps[name], info=info)
    return replace(image, maps=maps)


def _compiled(
    sources: Sequence[Path], defines: Mapping[str, str | int], cache_dir: Path | None
) -> list[Image]:
    flags = [f"-D{name}={value}" for name, value in defines.items()]
    texts = [inline(source) for source in sources]
    if cache_dir is None:
        return [answer.image() for answer in _compile_all(texts, flags)]
    places = {text: cache_dir / f"{_digest(text, flags)}.json" for text in texts}
    images = {text: image for text in texts if (image := _cached(places[text]))}
    with _alone_with([places[text] for text in texts if text not in images]):
        images |= {
            text: image for text in texts if text not in images and (image := _cached(places[text]))
        }
        missing = [text for text in texts if text not in images]
        for text, answer in zip(missing, _compile_all(missing, flags), strict=True):
            images[text] = answer.image()
            _keep(places[text], answer.text)
    return [images[text] for text in texts]


@contextlib.contextmanager
def _alone_with(places: Sequence[Path]) -> Iterator[None]:
    """Whoever wants the same images meanwhile waits for these, instead of compiling them too."""
    locks = [place.with_suffix(".lock") for place in sorted(places)]
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            for lock in locks:
                lock.parent.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(lock.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            for lock in locks:
                with contextlib.suppress(OSError):
                    lock.unlink()


def _compile_all(texts: Sequence[str], flags: list[str]) -> list[_Answer]:
    """All are started before the first is waited for, and all are waited for."""
    children = [_Child(text, flags) for text in texts]
    return [child.answer() for child in children]


def _digest(text: str, flags: list[str]) -> str:
    """Of everything that decides what comes out; for system headers, when they were installed."""
    digest = hashlib.sha256(text.encode())
    bcc = find_spec("bcc")
    if bcc is None or bcc.origin is None:
        raise CompileError("bcc is not installed (package python3-bpfcc)")
    for path in (Path(bcc.origin).with_name("version.py"), Path("/usr/include/linux/version.h")):
        with contextlib.suppress(OSError):
            digest.update(f"{path.stat().st_mtime_ns} {path.read_text()}".encode())
    for stub in sorted(_STUBS.rglob("*.h")):
        digest.update(stub.read_bytes())
    digest.update(json.dumps([_IMAGE_FORMAT, flags, machine()]).encode())
    return digest.hexdigest()


def _cached(place: Path) -> Image | None:
    try:
        image = _image_from_json(place.read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(place)
    return image


def _keep(place: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{os.getpid()}")
        beside.write_text(text)
        beside.rename(place)
        by_use = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for outdated in by_use[:-_IMAGES_KEPT]:
            outdated.unlink()


def _image_to_json(image: Image) -> str:
    functions = {
        name: {"code": base64.b64encode(function.code).decode(), "maps": function.maps}
        for name, function in image.functions.items()
    }
    return json.dumps(asdict(image) | {"functions": functions})


def _image_from_json(text: str) -> Image:
    raw = json.loads(text)
    return Image(
        functions={
            name: Function(
                base64.b64decode(function["code"], validate=True),
                {int(number): name for number, name in function["maps"].items()},
            )
            for name, function in raw["functions"].items()
        },
        maps={name: _declaration_from_json(entry) for name, entry in raw["maps"].items()},
        licence=raw["licence"],
        diagnostics=raw["diagnostics"],
    )


def _declaration_from_json(raw: dict[str, Any]) -> MapDeclaration:
    """With the fingerprint of the layout, which no cache is asked for."""
    info, key, value = MapInfo(**raw["info"]), raw["key"], raw["value"]
    return MapDeclaration(
        replace(info, fingerprint=layout_fingerprint(info, key, value)), key, value
    )


# --------------------------------------------------------------------------- the child process


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    """The image as JSON; empty when there is none."""
    said: str

    def image(self) -> Image:
        if not self.text:
            raise CompileError(self.said)
        return _image_from_json(self.text)


class _Child:
    """A compiler at work."""

    def __init__(self, text: str, flags: list[str]) -> None:
        # -P: nothing in the working directory is taken for a module.
        command = [sys.executable, "-P", "-m", "bpf.compiler"]
        self._job = json.dumps({"text": text, "flags": flags}).encode()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdin is not None
        # It reads all of it before it says anything, so this cannot get stuck.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(self._job)
            self._process.stdin.close()
        self._process.stdin = None

    def answer(self) -> _Answer:
        output, error = self._process.communicate()
        said = error.decode(errors="replace").strip()
        if self._process.returncode:
            return _Answer("", said or f"the compiler ended with {self._process.returncode}")
        raw = json.loads(output)
        return _Answer(json.dumps(raw | {"diagnostics": said}), said)


def main() -> None:
    """The child: a job on stdin, an image on stdout, what the compiler says on stderr."""
    job = json.load(sys.stdin)
    image = _compile(job["text"], job["flags"])
    if image is None:
        sys.exit(1)
    sys.stdout.write(_image_to_json(image))


def _compile(text: str, flags: list[str]) -> Image | None:
    """Compile in this process; None after a compiler's error, which it has told on stderr."""
    from bcc import BPF

    os.environ["BCC_KERNEL_SOURCE"] = str(_STUBS)
    try:
        bpf = BPF(text=text.encode(), cflags=[*_fixed_flags(), *flags])
    except Exception:
        # bcc raises bare Exceptions that say only that it failed.
        return None
    return _image_of(bpf)


def _fixed_flags() -> list[str]:
    return [
        "-isystem",
        "/usr/include",
        "-isystem",
        f"/usr/include/{machine()}-linux-gnu",
        "-U__KERNEL__",
        "-D__LINUX_BPF_H__",
        "-Wno-macro-redefined",
        # Or it compiles into a call of nothing, which the verifier reports in its own words.
        "-Werror=implicit-function-declaration",
    ]


def _image_of(bpf: Any) -> Image:
    from bcc import lib

    lib.bpf_num_tables.restype = lib.bpf_num_functions.restype = ctypes.c_ulonglong
    lib.bpf_num_tables.argtypes = lib.bpf_num_functions.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    for ask in (lib.bpf_table_key_size_id, lib.bpf_table_leaf_size_id):
        ask.restype, ask.argtypes = ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_ulonglong]
    module = bpf.module
    tables = [lib.bpf_table_name(module, at) for at in range(lib.bpf_num_tables(module))]
    functions = [lib.bpf_function_name(module, at) for at in range(lib.bpf_num_functions(module))]
    names = {lib.bpf_table_fd(module, name): name.decode() for name in tables}
    return Image(
        functions={name.decode(): _function_of(bpf.dump_func(name), names) for name in functions},
        maps={name.decode(): _declaration_of(lib, module, name) for name in tables},
        licence=lib.bpf_module_license(module).decode(),
        diagnostics="",
    )


def _declaration_of(lib: Any, module: Any, name: bytes) -> MapDeclaration:
    number = lib.bpf_table_id(module, name)
    described = (lib.bpf_table_key_desc(module, name), lib.bpf_table_leaf_desc(module, name))
    key, value = (json.loads(layout or b"null") for layout in described)
    info = MapInfo(
        type=lib.bpf_table_type_id(module, number),
        key_size=lib.bpf_table_key_size_id(module, number),
        value_size=lib.bpf_table_leaf_size_id(module, number),
        max_entries=lib.bpf_table_max_entries_id(module, number),
        flags=lib.bpf_table_flags_id(module, number),
        spin_lock=b"bpf_spin_lock" in (described[1] or b""),
    )
    return MapDeclaration(info, key, value)


def _function_of(code: bytes, names: Mapping[int, str]) -> Function:
    """Find the loads of a map's fd, which mean something in the compiling process only."""
    return Function(
        code,
        {
            at // _INSTRUCTION_BYTES: names[int.from_bytes(code[at + 4 : at + 8], sys.byteorder)]
            for at in range(0, len(code), _INSTRUCTION_BYTES)
            if code[at] == _LOAD_DOUBLE_WORD and code[at + 1] >> 4 == _SOURCE_IS_MAP_FD
        },
    )


if __name__ == "__main__":
    main()
