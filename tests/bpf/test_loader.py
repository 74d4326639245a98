"""From C source to a loaded program: inlining, errors that name the right line, flags."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpf import compiler, syscall
from bpf.loader import (
    SOURCE_DIR,
    CompileError,
    LoadedObject,
    compile_program,
    compile_programs,
    fill_cache,
    inline,
)
from bpf.syscall import ProgramKind, VerifierError, program_info
from tests.bpf.harness import XdpVerdict, run_xdp, tcp

PACKET = tcp(("192.0.2.1", 1), ("192.0.2.2", 2))

HEADER = """#include "map_macros.h"
GALE_MAP("hash", u32, u64, seen, ENTRIES, 0);

static __always_inline void see(u32 what)
{
	u64 one = 1, *count = seen.lookup(&what);

	if (count)
		*count += 1;
	else
		seen.insert(&what, &one);
}
"""
PROGRAM = """#include <linux/bpf.h>
#include "seen.h"
#include "seen.h"

int gale_test_pass(struct xdp_md *ctx)
{
	see(ctx->ingress_ifindex);
	BODY
	return XDP_PASS;
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "seen.h").write_text(HEADER)
    path = tmp_path / "main.c"
    path.write_text(PROGRAM)
    return path


def compile_with(source: Path, body: str) -> LoadedObject:
    source.write_text(PROGRAM.replace("BODY", body))
    return compile_program(str(source), defines={"ENTRIES": 4})


def test_a_header_is_inlined_once_with_its_own_headers(source: Path) -> None:
    text = inline(source)
    assert text.count("GALE_MAP(") - inline(SOURCE_DIR / "map_macros.h").count("GALE_MAP(") == 1
    assert text.count("#define GALE_MAP(") == 1
    assert '#include "' not in text
    assert "#include <linux/bpf.h>" in text


def test_every_line_of_the_text_is_marked_with_where_it_stands(source: Path) -> None:
    at: tuple[Path, int] | None = None
    checked = 0
    for line in inline(source).splitlines():
        mark = re.fullmatch(r'#line (\d+) "(.*)"', line)
        if mark:
            at = Path(mark[2]), int(mark[1])
            continue
        assert at is not None
        path, number = at
        assert path.read_text().splitlines()[number - 1] == line
        at = path, number + 1
        checked += 1
    assert checked > len((HEADER + PROGRAM).splitlines())


def test_map_calls_in_a_header_work_and_the_program_runs(source: Path) -> None:
    loaded = compile_with(source, "")
    fd = loaded.function("gale_test_pass", "xdp")
    assert run_xdp(fd, PACKET).verdict is XdpVerdict.PASS
    assert run_xdp(fd, PACKET).verdict is XdpVerdict.PASS
    assert [(key.value, value.value) for key, value in loaded.bpf[b"seen"].items()] == [(1, 2)]
    assert loaded.diagnostics == ""
    loaded.close()


def test_an_error_names_the_file_and_line_a_person_wrote(source: Path) -> None:
    with pytest.raises(CompileError) as error:
        compile_with(source, "nonsense;")
    assert f"{source}:8:" in str(error.value)

    header = source.with_name("seen.h")
    header.write_text(HEADER.replace("*count += 1", "*count += wrong"))
    with pytest.raises(CompileError) as error:
        compile_with(source, "")
    assert f"{header}:9:" in str(error.value)
    assert "wrong" in str(error.value)


def test_a_missing_header_names_who_wants_it(source: Path) -> None:
    source.write_text('\n#include "nowhere.h"\n')
    with pytest.raises(CompileError, match=re.escape(f"{source}:2: no such header: nowhere.h")):
        inline(source)


def test_what_the_compiler_says_reaches_the_caller_and_not_the_terminal(
    source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = compile_with(source, "int unset = 1 / 0; ctx += unset - unset;")
    assert f"{source}:8:" in loaded.diagnostics
    assert "division by zero" in loaded.diagnostics
    loaded.close()
    assert capfd.readouterr().err == ""


def test_the_verifier_is_quoted(source: Path) -> None:
    loaded = compile_with(source, "{ u32 none = 9; u64 *v = seen.lookup(&none); return *v; }")
    with pytest.raises(VerifierError, match="map_value_or_null") as refusal:
        loaded.function("gale_test_pass", "xdp")
    assert refusal.value.summary == (
        "gale_test_pass: [Errno 13] bpf(PROG_LOAD): Permission denied: "
        "R0 invalid mem access 'map_value_or_null'"
    )
    loaded.close()


def test_signals_while_the_verifier_is_at_work_cost_nothing(
    monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    """The kernel says EAGAIN then: who sends HUP in that moment must not end the process."""
    interrupted: list[OSError] = []
    ask = syscall._bpf

    def noted(*arguments: Any) -> int:
        try:
            return ask(*arguments)
        except BlockingIOError as error:
            interrupted.append(error)
            raise

    def another(*_: object) -> None:
        if len(interrupted) < 2:
            signal.setitimer(signal.ITIMER_REAL, after_ms / 1_000)

    monkeypatch.setattr(syscall, "_bpf", noted)
    before, after_ms = signal.signal(signal.SIGALRM, another), 0
    try:
        for after_ms in range(1, 100, 2):  # nobody knows how long it takes here
            programs = compile_program("xdp.c", cache_dir=cache.directory)
            signal.setitimer(signal.ITIMER_REAL, after_ms / 1_000)
            programs.function("gale_xdp_public", "xdp")
            signal.setitimer(signal.ITIMER_REAL, 0)
            programs.close()
            if interrupted:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(interrupted) >= 2


def test_a_program_has_its_name_and_is_loaded_once_for_each_set_of_flags(source: Path) -> None:
    loaded = compile_with(source, "")
    plain = loaded.function("gale_test_pass", "xdp")
    frags = loaded.function("gale_test_pass", "xdp", frags=True)
    assert loaded.function("gale_test_pass", "xdp") == plain != frags
    info = program_info(plain)
    assert (info.name, info.kind) == ("gale_test_pass", ProgramKind.XDP)
    assert program_info(frags).id != info.id
    assert run_xdp(frags, PACKET + bytes(9000)).verdict is XdpVerdict.PASS
    loaded.close()


def test_private_maps_are_private(source: Path) -> None:
    one, two = compile_with(source, ""), compile_with(source, "")
    run_xdp(one.function("gale_test_pass", "xdp"), PACKET)
    assert len(list(one.bpf[b"seen"].items())) == 1
    assert list(two.bpf[b"seen"].items()) == []
    one.close()
    two.close()


def test_sources_compiled_together_share_their_private_maps(source: Path) -> None:
    source.write_text(PROGRAM.replace("BODY", ""))
    one, two = compile_programs([str(source), str(source)], defines={"ENTRIES": 4})
    run_xdp(one.function("gale_test_pass", "xdp"), PACKET)
    run_xdp(two.function("gale_test_pass", "xdp"), PACKET)
    one.close()
    assert [value.value for value in two.bpf[b"seen"].values()] == [2]
    two.close()


def test_an_error_in_one_of_several_sources_is_told(source: Path) -> None:
    source.write_text(PROGRAM.replace("BODY", ""))
    broken = source.with_name("broken.c")
    broken.write_text("nonsense")
    with pytest.raises(CompileError, match=re.escape(f"{broken}:1:")):
        compile_programs([str(source), str(broken)], defines={"ENTRIES": 4})


# --------------------------------------------------------------------------- the cache


@dataclass
class Cache:
    source: Path
    directory: Path
    patch: pytest.MonkeyPatch

    def compile(self, entries: int = 4) -> None:
        loaded = compile_program(
            str(self.source), defines={"ENTRIES": entries}, cache_dir=self.directory
        )
        fd = loaded.function("gale_test_pass", "xdp")
        assert run_xdp(fd, PACKET).verdict is XdpVerdict.PASS
        assert [value.value for value in loaded.bpf[b"seen"].values()] == [1]
        assert loaded.bpf[b"seen"].info.max_entries == entries
        loaded.close()

    def without_compiler(self, entries: int = 4) -> None:
        """As `compile`, with a compiler that only fails."""
        with self.patch.context() as patch:
            patch.setattr(sys, "executable", "/bin/false")
            self.compile(entries)

    def images(self) -> list[Path]:
        return sorted(self.directory.iterdir())


@pytest.fixture
def cache(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    source.write_text(PROGRAM.replace("BODY", ""))
    return Cache(source, tmp_path / "state" / "images", monkeypatch)


def test_what_is_in_the_cache_is_not_compiled(cache: Cache) -> None:
    with pytest.raises(CompileError, match="the compiler ended with 1"):
        cache.without_compiler()
    cache.compile()
    cache.without_compiler()
    assert len(cache.images()) == 1


@pytest.mark.parametrize("what", ["define", "source", "header"])
def test_whatever_goes_into_a_program_is_a_reason_to_compile(cache: Cache, what: str) -> None:
    cache.compile()
    entries = 5 if what == "define" else 4
    changed = cache.source.with_name("seen.h") if what == "header" else cache.source
    if what != "define":
        changed.write_text(changed.read_text() + "/* changed */\n")
    with pytest.raises(CompileError):
        cache.without_compiler(entries)
    cache.compile(entries)
    cache.without_compiler(entries)


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"functions": {"a": {"code": "?"}}}', "cut"])
def test_a_damaged_image_is_compiled_anew(cache: Cache, damage: str) -> None:
    cache.compile()
    (image,) = cache.images()
    image.write_text(image.read_text()[:-20] if damage == "cut" else damage)
    cache.compile()
    cache.without_compiler()


def test_a_cache_that_cannot_be_written_is_no_obstacle(cache: Cache) -> None:
    cache.directory.parent.write_text("a file, where the directory should be")
    cache.compile()


def test_the_cache_keeps_the_images_that_were_used_last(cache: Cache) -> None:
    cache.compile()
    (image,) = cache.images()
    os.utime(image, (0, 0))
    cache.without_compiler()
    for number in range(300):
        other = image.with_name(f"{number}.json")
        other.write_text("{}")
        os.utime(other, (1 + number, 1 + number))
    cache.compile(entries=5)
    assert len(cache.images()) == 256
    cache.without_compiler(entries=4)
    cache.without_compiler(entries=5)


def test_several_that_want_the_same_compile_it_once(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    really = compiler._compile_all

    def counted(texts: Sequence[str], flags: list[str]) -> list[Any]:
        compiled.append(len(texts))
        return really(texts, flags)

    monkeypatch.setattr(compiler, "_compile_all", counted)
    threads = [threading.Thread(target=cache.compile) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(compiled) == [0, 0, 1]
    assert len(cache.images()) == 1, "no lock is left behind"


def test_what_will_be_wanted_can_be_compiled_beforehand(cache: Cache) -> None:
    fill_cache([str(cache.source)], {"ENTRIES": 4}, cache.directory)
    cache.without_compiler()
    cache.source.write_text("nonsense")
    fill_cache([str(cache.source)], {"ENTRIES": 4}, cache.directory)
    assert len(cache.images()) == 1


LOADING_PROCESS = """
import sys
from bpf.loader import compile_program
compile_program(sys.argv[1], defines={"ENTRIES": 4}).function("gale_test_pass", "xdp")
assert "LLVM" not in open("/proc/self/maps").read()
"""


def test_the_compiler_is_never_loaded_into_the_process_itself(cache: Cache) -> None:
    subprocess.run([sys.executable, "-c", LOADING_PROCESS, str(cache.source)], check=True)


# --------------------------------------------------------------------------- Gale's own


@pytest.mark.parametrize("defines", [{}, {"GALE_ONE_ARM": 1}], ids=["two arms", "one arm"])
def test_the_real_programs_load_without_a_warning(defines: dict[str, str | int]) -> None:
    tc = ["gale_tc_public", "gale_tc_private", "gale_tc_own"]
    programs = {"xdp.c": ["gale_xdp_public"], "tc.c": tc}
    for loaded, functions in zip(
        compile_programs(list(programs), defines=defines), programs.values(), strict=True
    ):
        assert loaded.diagnostics == ""
        for function in functions:
            fd = loaded.function(function, "xdp" if "xdp" in function else "tc")
            assert program_info(fd).name == function
        loaded.close()
