"""The rule of dependency, the pure cores, and the size of things, held over every source file.

The rules (and why: a service that imports another cannot be restarted, tested or understood
alone; a core that reads a clock cannot be run through a thousand simulated schedules):

* `services.X` imports `services.X`, the modules that are all services' own (`SHARED`), `bpf`,
  `bus`, `conf` and third parties. Only `services.cli` reaches further, inside a function: to
  `e2e.lab`, since an installed package has no lab, and to what says that it is *Pure*.
* `bpf` (the C programs, and what compiles, loads, pins and attaches them, for LBs and nodes alike),
  `bus` and `conf` import neither each other nor a service; only the words that messages are made of
  (`bus.words`) are the files' too.
* What no machine ships (`e2e`, `tests`) is imported by nothing that ships.
* What says in its docstring that it is *Pure* imports nothing that does I/O or knows the time, nor
  does what it imports of ours. The cores of the design must say so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bus", "conf", "services", "bpf", "e2e", "tests")

PURE_CORES = (
    "services/health/registry.py",
    "services/quorum/core.py",
    "services/dataplane/ring.py",
    "services/dataplane/plan.py",
    "services/dataplane/seats.py",
    "services/dataplane/fronts.py",
    "services/dataplane/mode_change.py",
    "services/dataplane/flows/census.py",
    "services/dataplane/flows/held.py",
    "services/dataplane/flows/listing.py",
    "services/dataplane/flows/records.py",
    "services/dataplane/flows/replica.py",
    "services/dataplane/flows/resets.py",
    "services/api/fold.py",
    "services/node/core.py",
)

IMPURE = frozenset(
    (
        "zmq",
        "socket",
        "time",
        "random",
        "os",
        "bcc",
        "asyncio",
        "select",
        "selectors",
        "subprocess",
        "threading",
        "secrets",
        "pyroute2",
        "structlog",
        "logging",
    )
)

MAY_IMPORT = {
    "bus": {"bus"},
    "conf": {"conf"},
    "bpf": {"bpf"},
    "services": {"bpf", "bus", "conf"},  # and of services, each its own
}

SHARED = {
    "services.connections",
    "services.logs",
    "services.machine",
    "services.process",
    "services.resolve",
    "services.statefile",
}
"""Directly in `services/`: a closed list, of what five processes must not answer differently."""

LINE_LENGTH = 100
FUNCTION_LENGTH = 60


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name, and whether the import waits inside a function."""

    module: str
    line: int
    is_lazy: bool


def _sources(*suffixes: str) -> list[Path]:
    """The files of our packages, without what the interpreter or a build leaves among them."""
    return sorted(
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in suffixes and path.is_file() and "__pycache__" not in path.parts
    )


PYTHON = _sources(".py")
C = [path for path in _sources(".c", ".h") if path.is_relative_to(ROOT / "bpf")]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=_name(path))


@cache
def _imports(path: Path) -> tuple[Import, ...]:
    """Everything a file imports, at its head or inside functions, `from x import y` as `x.y`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    lazy_nodes = {
        id(inner)
        for function in ast.walk(_tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(function)
    }
    return tuple(
        Import(module, getattr(node, "lineno", 1), id(node) in lazy_nodes)
        for node in ast.walk(_tree(path))
        for module in _imported_modules(node, package)
    )


def _imported_modules(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
        in ("import_module", "__import__")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        yield str(node.args[0].value)


def _is_allowed(path: Path, imported: Import) -> bool:
    """The rule of dependency, for one import of something of ours."""
    here = path.relative_to(ROOT).parts
    there = imported.module.split(".")
    if here[0] in ("e2e", "tests"):
        return True
    if there[0] in MAY_IMPORT[here[0]]:
        return True
    if here[0] == "conf":
        return there[:2] == ["bus", "words"]
    if here[0] != "services":
        return False
    if there[0] == "services":
        is_own = len(here) > 2 and there[1:2] == [here[1]]
        file = _file_of(imported.module)
        is_lent = here[1] == "cli" and imported.is_lazy and file is not None and _says_pure(file)
        return is_own or is_lent or ".".join(there[:2]) in SHARED
    return here[1] == "cli" and there[:2] == ["e2e", "lab"] and imported.is_lazy


def _fail_on(wrong: list[str]) -> None:
    """All offenders at once, each as a place to jump to."""
    if wrong:
        pytest.fail("\n".join(["", *wrong]), pytrace=False)


def test_rule_of_dependency() -> None:
    _fail_on(
        [
            f"{_name(path)}:{imported.line}: imports {imported.module}"
            for path in PYTHON
            for imported in _imports(path)
            if imported.module.split(".")[0] in PACKAGES and not _is_allowed(path, imported)
        ]
    )


def _file_of(module: str) -> Path | None:
    """The file of a module of ours; of `module.attribute`, that of the module."""
    parts = module.split(".")
    while parts:
        place = ROOT.joinpath(*parts)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file() and place != ROOT:
                return path
        parts.pop()
    return None


def _reached(path: Path, seen: dict[Path, Path | None]) -> dict[Path, Path | None]:
    """Every file of ours that importing `path` runs, each with the one that imports it."""
    for imported in _imports(path):
        is_ours = imported.module.split(".")[0] in PACKAGES
        target = _file_of(imported.module) if is_ours else None
        if target is not None and target not in seen:
            seen[target] = path
            _reached(target, seen)
    return seen


def _says_pure(path: Path) -> bool:
    return re.search(r"\bPure[.,;:]", ast.get_docstring(_tree(path)) or "") is not None


SAYING_PURE = [
    _name(path) for path in PYTHON if path.parts[len(ROOT.parts)] != "tests" and _says_pure(path)
]


@pytest.mark.parametrize("name", PURE_CORES)
def test_a_core_of_the_design_says_that_it_is_pure(name: str) -> None:
    assert (ROOT / name).is_file(), f"{name} is one of the cores of the design, and is not there"
    assert name in SAYING_PURE


@pytest.mark.parametrize("name", SAYING_PURE)
def test_what_says_pure_is_pure(name: str) -> None:
    core = ROOT / name
    _fail_on(
        [
            f"{_name(path)}:{imported.line}: imports {imported.module}"
            for path in _reached(core, {core: None})
            for imported in _imports(path)
            if imported.module.split(".")[0] in IMPURE
        ]
    )


def _lines(paths: list[Path]) -> Iterator[tuple[str, str]]:
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            yield f"{_name(path)}:{number}", line


def test_lines_fit() -> None:
    _fail_on(
        [
            f"{place}: {len(line)} characters"
            for place, line in _lines([*PYTHON, *C])
            if len(line) > LINE_LENGTH
        ]
    )


def test_functions_are_short() -> None:
    _fail_on(
        [
            f"{_name(path)}:{node.lineno}: {node.name} has {length} lines"
            for path in PYTHON
            for node in ast.walk(_tree(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LENGTH
        ]
    )


def test_nothing_is_left_for_later() -> None:
    words = ("TO" + "DO", "FIX" + "ME")
    sources = _sources(".py", ".c", ".h", ".toml", ".conf")
    _fail_on(
        [
            f"{place}: {line.strip()}"
            for place, line in _lines(sources)
            if any(word in line for word in words)
        ]
    )


def test_modules_have_their_design_page() -> None:
    _fail_on(
        [
            f"{_name(path)}:1: no docstring"
            for path in PYTHON
            if path.relative_to(ROOT).parts[0] != "tests"
            and path.name != "__init__.py"
            and not ast.get_docstring(_tree(path))
        ]
    )


# --------------------------------------------------------------------------- of these rules


@pytest.mark.parametrize(
    ("path", "module", "is_lazy", "is_allowed"),
    [
        ("services/health/main.py", "services.health.registry", False, True),
        ("services/health/main.py", "bus.socket.Publisher", False, True),
        ("services/health/main.py", "conf.load_lb", False, True),
        ("services/health/main.py", "services.quorum.core", False, False),
        ("services/health/main.py", "services.quorum.core", True, False),
        ("services/health/main.py", "e2e.lab", True, False),
        ("services/health/main.py", "tests.sim", False, False),
        ("services/cli/lab.py", "e2e.lab.topology", True, True),
        ("services/cli/lab.py", "e2e.lab.topology", False, False),
        ("services/cli/lab.py", "e2e.load", True, False),
        ("services/cli/status.py", "services.api.main", True, False),
        ("services/cli/trace.py", "services.dataplane.trace.read_question", True, True),
        ("services/cli/trace.py", "services.dataplane.trace.read_question", False, False),
        ("services/api/main.py", "services.dataplane.trace.read_question", True, False),
        ("services/__init__.py", "services.api", False, False),
        ("bus/socket.py", "bus.codec", False, True),
        ("bus/socket.py", "conf", False, False),
        ("conf/lb.py", "bus.words.Mode", False, True),
        ("conf/lb.py", "bus.states.LocalView", False, False),
        ("conf/lb.py", "services.cli", True, False),
        ("services/health/main.py", "services.machine.own_address", False, True),
        ("services/health/main.py", "services.quorum.main", False, False),
        ("services/node/host.py", "bpf.attach", False, True),
        ("bpf/loader.py", "bpf.pins", False, True),
        ("bpf/attach.py", "bus.states.HookState", False, False),
        ("bpf/loader.py", "services.dataplane", False, False),
        ("e2e/test_http.py", "services.health.main", False, True),
        ("tests/conf/test_lines.py", "conf.lines", False, True),
    ],
)
def test_the_rule_itself(path: str, module: str, is_lazy: bool, is_allowed: bool) -> None:
    assert _is_allowed(ROOT / path, Import(module, 1, is_lazy)) is is_allowed


def test_every_way_to_import_is_seen() -> None:
    text = """
import a.b
from c import d, e
from . import f
from ..g import h
def lazy():
    import i
    importlib.import_module("j.k")
"""
    found = [
        module
        for node in ast.walk(ast.parse(text))
        for module in _imported_modules(node, ("services", "health"))
    ]
    assert sorted(found) == [
        "a.b", "c.d", "c.e", "i", "j.k", "services.g.h", "services.health.f",
    ]  # fmt: skip
