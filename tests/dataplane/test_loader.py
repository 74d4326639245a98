"""From C source to a loaded program: inlining, errors that name the right line, flags."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from services.dataplane.bpf_syscall import ProgramKind, VerifierError, program_info
from services.dataplane.loader import (
    SOURCE_DIR,
    CompileError,
    LoadedObject,
    compile_program,
    inline,
)
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
    print("still there", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "still there\n"


def test_the_verifier_is_quoted(source: Path) -> None:
    loaded = compile_with(source, "{ u32 none = 9; u64 *v = seen.lookup(&none); return *v; }")
    with pytest.raises(VerifierError, match="map_value_or_null"):
        loaded.function("gale_test_pass", "xdp")
    loaded.close()


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


@pytest.mark.parametrize("defines", [{}, {"GALE_ONE_ARM": 1}], ids=["two arms", "one arm"])
def test_the_real_programs_load_without_a_warning(defines: dict[str, str | int]) -> None:
    programs = {"xdp.c": ["gale_xdp_public"], "tc.c": ["gale_tc_public", "gale_tc_private"]}
    for source_file, functions in programs.items():
        loaded = compile_program(source_file, defines=defines)
        assert loaded.diagnostics == ""
        for function in functions:
            fd = loaded.function(function, "xdp" if "xdp" in function else "tc")
            assert program_info(fd).name == function
        loaded.close()
