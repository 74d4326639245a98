"""What the emulated machine shows; it runs there as root. Exit status 0: all was shown.

The LB of each lab has a virtio card for its public interface, with native XDP, and a veth for its
private one. A failure is told with the verifier's last lines or the lab's logs, and the rest is
tried all the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bpf.loader import compile_programs
from bpf.syscall import VerifierError
from e2e.hosts import LabHosts, lab_hosts
from e2e.lab import LabError, Plan
from e2e.lab.devices import VETH, VIRTIO
from e2e.lab.files import IMAGES_DIR, toml_text
from e2e.vm.variants import Variant, variants

MODES = ("l2", "l3", "l4")
PATIENT = {"node_health": {"checks_timeout": "20s"}}
"""An emulated agent may be late."""
FETCH = "curl --silent --show-error --fail --noproxy '*' --max-time 50"

Say = Callable[[str], None]


class Show:
    """Tells what was shown, with the time since the machine came up, and keeps what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        print(f"{time.clock_gettime(time.CLOCK_BOOTTIME):7.1f} s  {text}", flush=True)

    def check(self, what: str, test: Callable[[], str]) -> None:
        """Run it; it returns what was seen, or raises what went wrong."""
        try:
            self.say(f"ok      {what}: {test()}")
        except (AssertionError, LabError, VerifierError, OSError, LookupError) as error:
            self.failed.append(what)
            self.say(f"FAILED  {what}: {error}")


def load(variant: Variant) -> str:
    """Have the kernel take each program of it, those of XDP also as ones that know of fragments."""
    objects = compile_programs(variant.sources, defines=variant.defines, cache_dir=IMAGES_DIR)
    loaded = dict(zip(variant.sources, objects, strict=True))
    begin = time.monotonic()
    try:
        for source, name, kind in variant.programs:
            loaded[source].function(name, kind)
            if kind == "xdp":
                loaded[source].function(name, kind, frags=True)
    finally:
        for each in objects:
            each.close()
    names = ", ".join(name for _, name, _ in variant.programs)
    return f"{names} loaded in {time.monotonic() - begin:.0f} s"


def show_mode(show: Show, mode: str, extra: Path) -> None:
    lab = Plan(mode=mode, nodes=2, devices=(f"{VIRTIO}/{VETH}",), emulated=True)
    with lab_hosts(lab, show.say, extra) as hosts:
        show.check(f"{mode}, one request", lambda: one_request(hosts))
        show.check(f"{mode}, a download", lambda: download(hosts))
        show.check(f"{mode}, hooks", lambda: hooks(hosts))
        show.check(f"{mode}, outputs", lambda: outputs(hosts))


def one_request(hosts: LabHosts) -> str:
    done = hosts.run(hosts.client, "sh", "-c", f"{FETCH} http://{hosts.vip()}:8080/")
    answer = done.stdout.strip()
    assert answer in hosts.nodes, done.stderr or answer
    return f"answered by {answer}"


def download(hosts: LabHosts) -> str:
    url = f"http://{hosts.vip()}:8080/1m.bin"
    script = f"{FETCH} {url} | sha256sum; {FETCH} {url}.sha256"
    done = hosts.run(hosts.client, "sh", "-c", script)
    sums = [line.split()[0] for line in done.stdout.splitlines()]
    assert sums[1:] == sums[:1], done.stdout + done.stderr
    return f"sha256 {sums[0][:16]}... as it should be"


def hooks(hosts: LabHosts) -> str:
    """The card of a virtual machine takes native XDP."""
    states = hosts.api(hosts.lbs[0], "/v1/status")["dataplane"]["hooks"]
    told = {hook["program"]: hook["flavour"] or hook["detail"] for hook in states}
    assert told == {"xdp_public": "native", "tc_public": "tc", "tc_private": "tc"}, told
    return ", ".join(f"{program} {flavour}" for program, flavour in told.items())


def outputs(hosts: LabHosts) -> str:
    states = hosts.api(hosts.lbs[0], "/v1/status")["dataplane"]["outputs"]
    assert states, "no device is named"
    return "; ".join(str(state) for state in states)


def main() -> int:
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    show = Show()
    show.say(f"Linux {os.uname().release}")
    for variant in variants():
        show.check(f"programs for {variant.name}", partial(load, variant))
    with tempfile.TemporaryDirectory() as directory:
        extra = Path(directory) / "extra.toml"
        extra.write_text(toml_text(PATIENT))
        for mode in MODES:
            try:
                show_mode(show, mode, extra)
            except (LabError, LookupError, OSError) as error:
                show.failed.append(mode)
                show.say(f"FAILED  {mode}: {error}")
    show.say(f"failed: {', '.join(show.failed)}" if show.failed else "everything was shown")
    return 1 if show.failed else 0


if __name__ == "__main__":
    sys.exit(main())
