"""What the emulated machine is made of, without making one: `make vm` does that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpf.compiler import SOURCE_DIR
from e2e.vm import host
from e2e.vm.host import Kernel, VmError
from e2e.vm.variants import variants

KERNEL = Kernel("6.1.0-56-amd64")


def answer(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[list[str]]:
    """Have these be what tools print, one after the other; what was asked of them."""
    asked: list[list[str]] = []
    left = list(texts)

    def command(words: list[str], stdin: str | None = None, cwd: Path | None = None) -> str:
        asked.append(words)
        return left.pop(0) if left else ""

    monkeypatch.setattr(host, "command", command)
    return asked


def test_the_newest_kernel_of_the_series_is_taken_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "VM_DIR", tmp_path)
    monkeypatch.setattr(host, "KERNEL_DIR", tmp_path / "kernel")
    (tmp_path / "linux-image-left-over.deb").touch()
    names = ("9-amd64", "49-amd64", "56-cloud-amd64", "57-amd64-dbg", "48-rt-amd64")

    def command(words: list[str]) -> str:
        if words[:2] == ["apt-get", "download"]:
            (tmp_path / f"{words[2]}_1_amd64.deb").touch()
        if words[0] == "dpkg-deb":
            (Path(words[-1]) / "boot").mkdir(parents=True)
            (Path(words[-1]) / "boot" / "vmlinuz-6.1.0-49-amd64").touch()
            assert words[2] == str(tmp_path / "linux-image-6.1.0-49-amd64_1_amd64.deb")
        return "".join(f"linux-image-6.1.0-{name}\n" for name in names)

    monkeypatch.setattr(host, "command", command)
    assert host.fetch_kernel(print) == Kernel("6.1.0-49-amd64")
    assert [path.name for path in tmp_path.iterdir()] == ["kernel"]
    monkeypatch.setattr(host, "command", None)
    assert host.fetch_kernel(print) == Kernel("6.1.0-49-amd64")


def test_a_distribution_without_such_a_kernel_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "VM_DIR", tmp_path)
    monkeypatch.setattr(host, "KERNEL_DIR", tmp_path / "kernel")
    answer(monkeypatch, "linux-image-6.12.0-1-amd64\n")
    with pytest.raises(VmError, match="run this on Debian 12"):
        host.fetch_kernel(print)


def test_each_module_comes_once_and_after_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ("insmod /m/virtio.ko \ninsmod /m/virtio_pci.ko \n", "builtin 9pnet\n")
    answer(monkeypatch, *needs, "insmod /m/virtio.ko \ninsmod /m/9p.ko \n")
    names = [path.name for path in host._modules(KERNEL)]
    assert names == ["virtio.ko", "virtio_pci.ko", "9p.ko"]


@pytest.mark.parametrize(("said", "wanted"), [("0\n", 0), ("1\n", 1), ("", None)])
def test_only_what_the_machine_says_at_its_end_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, wanted: int | None
) -> None:
    """One that hangs and is ended, or panics, has said nothing."""
    monkeypatch.setattr(host, "VM_DIR", tmp_path)
    result = tmp_path / "result"
    result.write_text("0\n")
    script = f"test ! -e {result} && printf '{said}' > {result}"
    monkeypatch.setattr(host, "_qemu", lambda *_: ["sh", "-c", script])
    if wanted is None:
        with pytest.raises(VmError, match="without a result"):
            host.boot(KERNEL, tmp_path / "first.cpio", print)
    else:
        assert host.boot(KERNEL, tmp_path / "first.cpio", print) == wanted


def test_a_qemu_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "VM_DIR", tmp_path)
    monkeypatch.setattr(host, "_qemu", lambda *_: ["false"])
    with pytest.raises(VmError, match="qemu"):
        host.boot(KERNEL, tmp_path / "first.cpio", print)


def test_every_program_that_there_is_is_loaded_there() -> None:
    entrance = re.compile(r"^int (gale_\w+)\(struct (xdp_md|__sk_buff) \*", re.M)
    kinds = {"xdp_md": "xdp", "__sk_buff": "tc"}
    there_are = {
        (path.name, name, kinds[context])
        for path in SOURCE_DIR.glob("*.c")
        for name, context in entrance.findall(path.read_text())
    }
    assert there_are == {program for each in variants() for program in each.programs}
