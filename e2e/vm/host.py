"""What the host does for the emulated machine: its kernel, its first files, and qemu.

A fault of the host (no such package, a tool that fails) is a `VmError` with what was said.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpf.compiler import CompileError, compile_images
from e2e.lab.devices import VIRTIO_CARDS
from e2e.lab.files import IMAGES_DIR
from e2e.lab.plan import CHECKOUT_DIR
from e2e.vm.variants import variants

VM_DIR = CHECKOUT_DIR / "build" / "vm"
KERNEL_DIR = VM_DIR / "kernel"
PACKAGES = re.compile(r"linux-image-6\.1\.0-(\d+)-amd64")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net")
"""What the machine needs before it has a root; the others it loads from there."""
TIMEOUT_S = 3600
"""An emulated machine that hangs for ever is ended."""

Say = Callable[[str], object]


class VmError(Exception):
    """The emulated machine cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: `release` as uname tells it."""

    release: str

    @property
    def image(self) -> Path:
        return KERNEL_DIR / "boot" / f"vmlinuz-{self.release}"


def command(words: Sequence[str], stdin: str | None = None, cwd: Path = VM_DIR) -> str:
    """Run a tool; its output, or VmError with what it complained of."""
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, check=False, cwd=cwd
        )
    except FileNotFoundError as error:
        raise VmError(f"{words[0]}: {error}; `make vm` installs what is missing") from None
    if done.returncode != 0:
        raise VmError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# --------------------------------------------------------------------------- kernel


def fetch_kernel(say: Say) -> Kernel:
    """The kernel in build/vm/kernel; if there is none, the newest 6.1 that the distribution has."""
    VM_DIR.mkdir(parents=True, exist_ok=True)
    if not KERNEL_DIR.exists():
        package = _newest_package()
        say(f"fetching {package}")
        for earlier in VM_DIR.glob("linux-image-*.deb"):
            earlier.unlink()
        command(["apt-get", "download", package])
        (archive,) = VM_DIR.glob("linux-image-*.deb")
        _unpack(archive, package.removeprefix("linux-image-"))
        archive.unlink()
    (image,) = (KERNEL_DIR / "boot").glob("vmlinuz-*")
    return Kernel(image.name.removeprefix("vmlinuz-"))


def _newest_package() -> str:
    names = command(["apt-cache", "pkgnames", "linux-image-6.1.0-"]).split()
    found = {int(match[1]): name for name in names if (match := PACKAGES.fullmatch(name))}
    if not found:
        raise VmError(
            "no package linux-image-6.1.0-N-amd64: run this on Debian 12, after apt-get update"
        )
    return found[max(found)]


def _unpack(archive: Path, release: str) -> None:
    beside = KERNEL_DIR.with_name("kernel~next")
    shutil.rmtree(beside, ignore_errors=True)
    command(["dpkg-deb", "--extract", str(archive), str(beside)])
    command(["depmod", "--basedir", str(beside), release])
    beside.rename(KERNEL_DIR)


# --------------------------------------------------------------------------- first files


def pack_first_files(kernel: Kernel) -> Path:
    """The archive that the kernel starts from: busybox, the modules in order, `init.sh`."""
    root, archive = VM_DIR / "first", VM_DIR / "first.cpio"
    shutil.rmtree(root, ignore_errors=True)
    for directory in ("bin", "modules"):
        (root / directory).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    shutil.copy(Path(__file__).with_name("init.sh"), root / "init")
    (root / "init").chmod(0o755)
    for number, module in enumerate(_modules(kernel)):
        shutil.copy(module, root / "modules" / f"{number:02}-{module.name}")
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    words = ["cpio", "--create", "--quiet", "--format=newc", f"--file={archive}"]
    command(words, "\n".join(names), root)
    return archive


def _modules(kernel: Kernel) -> list[Path]:
    """The files of MODULES and of what they need, each after what it needs itself."""
    words = ["modprobe", "--dirname", str(KERNEL_DIR), "--set-version", kernel.release]
    lines: list[str] = []
    for name in MODULES:
        lines += command([*words, "--show-depends", name]).splitlines()
    files = [line.split()[1] for line in lines if line.startswith("insmod ")]
    return [Path(file) for file in dict.fromkeys(files)]


# --------------------------------------------------------------------------- programs, qemu


def compile_all(say: Say) -> None:
    """Have in the cache all that the machine will load."""
    say("compiling the programs")
    for variant in variants():
        try:
            compile_images(variant.paths, variant.defines, IMAGES_DIR)
        except CompileError as error:
            raise VmError(str(error)) from None


def boot(kernel: Kernel, first_files: Path, say: Say) -> int:
    """Run the machine, with its console on this one; the exit status of what it ran."""
    result = VM_DIR / "result"
    result.unlink(missing_ok=True)
    say(f"booting {kernel.release}")
    try:
        subprocess.run(
            _qemu(kernel, first_files, result),
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise VmError(f"qemu: {error}") from None
    said = result.read_text().strip() if result.exists() else ""
    if not said.isdigit():
        raise VmError("the machine ended without a result")
    return int(said)


def _qemu(kernel: Kernel, first_files: Path, result: Path) -> list[str]:
    words = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg"]
    words += ["-cpu", "max", "-smp", "2", "-m", "4G", "-nodefaults", "-no-reboot"]
    words += ["-display", "none", "-serial", "stdio", "-serial", f"file:{result}"]
    words += ["-kernel", str(kernel.image), "-initrd", str(first_files)]
    options = f"console=ttyS0 quiet panic=-1 gale_checkout={CHECKOUT_DIR}"
    words += ["-append", options]
    root = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"
    words += ["-fsdev", root, "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]
    for number, address in enumerate(VIRTIO_CARDS):
        words += ["-netdev", f"hubport,id=port{number},hubid=0"]
        words += ["-device", f"virtio-net-pci,netdev=port{number},mac={address}"]
    return words
