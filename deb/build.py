"""Stage the files of each package, and have dpkg-deb pack them.

Everything is made below a build directory from the checkout alone, but for what pip fetches. A
package has no file that its forerunner would have to be asked about, but for the rotation of logs:
supervisord's files and the shared ones are replaced by an upgrade, and /etc/gale is the
administrator's.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deb.manual import page_of_process, page_of_program

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
HOME = Path("usr/lib/gale")
PROCESSES = {
    "gale-dataplane": "services.dataplane.main",
    "gale-health": "services.health.main",
    "gale-quorum": "services.quorum.main",
    "gale-api": "services.api.main",
    "gale-agent": "services.node.main",
}
PROGRAMS = {"gale": "services.cli.main", **PROCESSES}
DISTRIBUTIONS_OWN = ("supervisor", "setuptools", "pkg_resources", "_distutils_hack", "pip")
"""Of what pip brings, what the packages take from the distribution or have no use for."""
EPOCH = "1767225600"
"""The time of every packed file, so that what was not changed is packed into the same bytes."""
NEXT_PYTHON = f"3.{sys.version_info.minor + 1}"
PROGRAM = """\
#!/usr/lib/gale/bin/python3
from {module} import main

main()
"""
VENV = """\
home = /usr/bin
include-system-site-packages = true
"""
MAINTAINER = "The Gale developers <gale@example.org>"


@dataclass(frozen=True, slots=True)
class Package:
    """What stands in its control file, and the folder of this one that holds its scripts."""

    name: str
    folder: str
    depends: tuple[str, ...]
    summary: str
    description: str
    recommends: str = ""
    architecture: str = "amd64"


PACKAGES = (
    Package(
        "gale-common",
        "common",
        (
            "libc6 (>= 2.34)",
            f"python3 (>= 3.{sys.version_info.minor})",
            f"python3 (<< {NEXT_PYTHON})",
            "python3-pkg-resources",
            "iproute2",
            "passwd",
            "supervisor (>= 4.2)",
            "systemd | systemd-standalone-sysusers",
            "systemd | systemd-standalone-tmpfiles",
        ),
        "layer-4 load balancer: programs and users",
        "Gale forwards packets in the kernel, by XDP and TC, and decides in small\n"
        "supervised processes where they go. This package has what load\n"
        "balancers and nodes share.",
        recommends="logrotate",
    ),
    Package(
        "gale-lb",
        "lb",
        ("gale-common (= {version})", "python3-bpfcc", "linux-libc-dev"),
        "layer-4 load balancer: a load balancer's processes",
        "Gale forwards packets in the kernel, by XDP and TC, and decides in small\n"
        "supervised processes where they go. This package makes a machine\n"
        "one of the load balancers.",
        architecture="all",
    ),
    Package(
        "gale-node",
        "node",
        ("gale-common (= {version})",),
        "layer-4 load balancer: the agent of a node",
        "Gale forwards packets in the kernel, by XDP and TC, and decides in small\n"
        "supervised processes where they go. This package makes a machine\n"
        "one of the nodes, which serve.",
        recommends="python3-bpfcc, linux-libc-dev",
        architecture="all",
    ),
)


def checkout_version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def build(into: Path, version: str) -> list[Path]:
    """The packages, as files in the directory; raises CalledProcessError with a tool's word."""
    into.mkdir(parents=True, exist_ok=True)
    stages = into / "stage"
    shutil.rmtree(stages, ignore_errors=True)
    _programs(stages / "gale-common", _wheel(into / "wheel"))
    _manual(stages / "gale-common")
    _completion(stages / "gale-common")
    _shared(stages / "gale-common")
    _witness(stages / "gale-common")
    _supervised(stages / "gale-lb", "gale.conf", "lb.toml")
    _supervised(stages / "gale-node", "gale-node.conf", "node.toml")
    made = [_pack(each, stages / each.name, into, version) for each in PACKAGES]
    shutil.rmtree(stages)
    return made


def _run(words: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    surrounding = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **(environment or {})}
    return subprocess.run(
        [str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True,
        env=surrounding, cwd=ROOT,
    ).stdout  # fmt: skip


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


# --------------------------------------------------------------------------- programs


def _wheel(into: Path) -> Path:
    shutil.rmtree(into, ignore_errors=True)
    # setuptools would pack files of an earlier build that the checkout has no more.
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", into, ROOT])
    (wheel,) = into.glob("*.whl")
    return wheel


def _programs(stage: Path, wheel: Path) -> None:
    """The environment with everything in it, and a program for each entry point."""
    home = stage / HOME
    libraries = _libraries(home)
    words = ["-m", "pip", "install", "--quiet", "--no-compile", "--target"]
    _run([sys.executable, *words, libraries, wheel])
    _without_what_is_not_needed(libraries)
    # Bytecode that is never compared with its source: processes of five users could not write it.
    options: list[str | Path] = [
        "-qq",
        "-s",
        stage,
        "-p",
        "/",
        "--invalidation-mode",
        "unchecked-hash",
    ]
    _run([sys.executable, "-m", "compileall", *options, libraries], {"PYTHONHASHSEED": "0"})
    _write(home / "pyvenv.cfg", VENV)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to("/usr/bin/python3")
    for name, module in PROGRAMS.items():
        _write(home / "bin" / name, PROGRAM.format(module=module), 0o755)
        (stage / "usr" / "bin").mkdir(parents=True, exist_ok=True)
        (stage / "usr" / "bin" / name).symlink_to(f"../lib/gale/bin/{name}")


def _libraries(home: Path) -> Path:
    return home / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"


def _without_what_is_not_needed(libraries: Path) -> None:
    for name in ("bin", *DISTRIBUTIONS_OWN):
        for path in (libraries / name, *libraries.glob(f"{name}-*.dist-info")):
            shutil.rmtree(path, ignore_errors=True)
    (libraries / "distutils-precedence.pth").unlink(missing_ok=True)
    for tests in [*libraries.rglob("tests"), *libraries.rglob("__pycache__")]:
        shutil.rmtree(tests, ignore_errors=True)
    for path in libraries.rglob("*"):
        if path.is_file():
            path.chmod(0o755 if path.name == "start" else 0o644)
        elif path.is_dir():
            path.chmod(0o755)


def _staged_python(stage: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(_libraries(stage / HOME))}


# --------------------------------------------------------------------------- what goes with them


def _manual(stage: Path) -> None:
    directory = stage / "usr" / "share" / "man"
    _write_compressed(directory / "man1" / "gale.1.gz", page_of_program())
    for name, module in PROCESSES.items():
        _write_compressed(directory / "man8" / f"{name}.8.gz", page_of_process(name, module))


def _write_compressed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    path.chmod(0o644)


def _completion(stage: Path) -> None:
    places = {
        "bash": "bash-completion/completions/gale",
        "zsh": "zsh/vendor-completions/_gale",
        "fish": "fish/vendor_completions.d/gale.fish",
    }
    program = "from services.cli.main import main; import sys; sys.argv = ['gale']; main()"
    for shell, place in places.items():
        environment = _staged_python(stage) | {"_GALE_COMPLETE": f"source_{shell}"}
        text = _run(["/usr/bin/python3", "-c", program], environment)
        _write(stage / "usr" / "share" / place, text)


def _shared(stage: Path) -> None:
    _write(stage / "usr/lib/sysusers.d/gale.conf", (HERE / "common/sysusers.conf").read_text())
    _write(stage / "usr/lib/tmpfiles.d/gale.conf", (HERE / "common/tmpfiles.conf").read_text())
    _write(stage / "etc/logrotate.d/gale", (HERE / "common/logrotate").read_text())
    # The configurations are the administrator's, who finds a place for them.
    (stage / "etc" / "gale").mkdir()
    # Where supervisord's files look for the logs, and what starts each process: beside themselves.
    (stage / "etc/supervisor/conf.d").mkdir(parents=True)
    (stage / "etc/supervisor/conf.d/log").symlink_to("/var/log/gale")
    start = Path("usr/share/gale/supervisor/start")
    _write(stage / start, (ROOT / "conf" / "supervisor" / "start").read_text(), 0o755)
    (stage / "etc/supervisor/conf.d/start").symlink_to(f"/{start}")


def _supervised(stage: Path, group: str, example: str) -> None:
    """A group's file is a link to the package's own, so that it goes with the package."""
    folder = "lb" if example == "lb.toml" else "node"
    text = (HERE / folder / "tmpfiles.conf").read_text()
    _write(stage / f"usr/lib/tmpfiles.d/{stage.name}.conf", text)
    shipped = Path("usr/share/gale/supervisor") / group
    _write(stage / shipped, (ROOT / "conf" / "supervisor" / group).read_text())
    (stage / "etc/supervisor/conf.d").mkdir(parents=True)
    (stage / "etc/supervisor/conf.d" / group).symlink_to(f"/{shipped}")
    documents = stage / "usr" / "share" / "doc" / stage.name / "examples"
    _write(documents / example, (ROOT / "conf" / example).read_text())


def _witness(stage: Path) -> None:
    """For a machine that only votes: its administrator links it into supervisord's directory."""
    name = "gale-witness.conf"
    text = (ROOT / "conf" / "supervisor" / name).read_text()
    _write(stage / "usr/share/gale/supervisor" / name, text)


# --------------------------------------------------------------------------- packing


def _pack(package: Package, stage: Path, into: Path, version: str) -> Path:
    documents = stage / "usr" / "share" / "doc" / package.name
    _write(documents / "copyright", (HERE / "copyright").read_text())
    _write_compressed(documents / "changelog.gz", _changelog(package, version))
    overrides = HERE / package.folder / "lintian-overrides"
    if overrides.exists():
        _write(stage / "usr/share/lintian/overrides" / package.name, overrides.read_text())
    control = stage / "DEBIAN"
    for script in ("postinst", "prerm", "postrm"):
        source = HERE / package.folder / script
        if source.exists():
            _write(control / script, source.read_text(), 0o755)
    settings = [f"/{path.relative_to(stage)}\n" for path in _files(stage / "etc")]
    if settings:
        _write(control / "conffiles", "".join(settings))
    _write(control / "md5sums", _sums(stage))
    _write(control / "control", _control(package, stage, version))
    for directory in [stage, *(path for path in stage.rglob("*") if path.is_dir())]:
        if not directory.is_symlink():
            directory.chmod(0o755)
    packed = into / f"{package.name}_{version}_{package.architecture}.deb"
    _run(["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", stage, packed])
    return packed


def _files(stage: Path) -> Iterable[Path]:
    for path in sorted(stage.rglob("*")):
        inside = path.relative_to(stage)
        if path.is_file() and not path.is_symlink() and inside.parts[0] != "DEBIAN":
            yield path


def _sums(stage: Path) -> str:
    names = [str(path.relative_to(stage)) for path in _files(stage)]
    return subprocess.run(
        ["xargs", "-0", "md5sum"],
        input="\0".join(names),
        cwd=stage,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _control(package: Package, stage: Path, version: str) -> str:
    kilobytes = sum(path.stat().st_size for path in _files(stage)) // 1024
    depends = ", ".join(package.depends).format(version=version)
    lines = [
        f"Package: {package.name}",
        f"Version: {version}",
        f"Architecture: {package.architecture}",
        f"Maintainer: {MAINTAINER}",
        "Section: net",
        "Priority: optional",
        f"Installed-Size: {kilobytes}",
        f"Depends: {depends}",
        *([f"Recommends: {package.recommends}"] if package.recommends else []),
        f"Description: {package.summary}",
        *(f" {line}" for line in package.description.splitlines()),
    ]
    return "\n".join(lines) + "\n"


def _changelog(package: Package, version: str) -> str:
    date = _run(["date", "--rfc-email", "--utc", f"--date=@{EPOCH}"]).strip()
    return (
        f"{package.name} ({version}) unstable; urgency=medium\n\n"
        "  * See CHANGELOG.md of the project for what is new.\n\n"
        f" -- {MAINTAINER}  {date}\n"
    )
