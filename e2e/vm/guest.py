"""What the emulated machine shows; it runs there as root. Exit status 0: all was shown.

The lab's LB has a virtio card for its public interface, with native XDP, and a veth for its
private one. A failure is told with the verifier's last lines or the lab's logs, and the rest is
tried all the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bpf.loader import compile_programs
from bpf.syscall import VerifierError
from e2e.hosts import LabHosts, lab_hosts, verdicts, wait_for
from e2e.lab import LabError, Plan
from e2e.lab.devices import VETH, VIRTIO
from e2e.lab.files import IMAGES_DIR, toml_text
from e2e.vm.variants import Variant, variants

MODES = {"l3": "l3_forwarded", "l2": "l2_forwarded", "l4": "l4_reply"}
"""In the order they are shown, and the reason that only packets of this mode are given. With L3
first the private network has room for its outer headers."""
FIRST_MODE = "l3"
PATIENT = {"checks_timeout": "10s", "checks_before_routing": 1}
"""An emulated agent may be late."""
CHANGE_TIMEOUT_S = 300
FAULTS = (
    AssertionError,
    LabError,
    LookupError,
    OSError,
    VerifierError,
    subprocess.SubprocessError,
)
"""What a check may raise; anything else is a fault of this program."""
FETCH = "curl --silent --show-error --fail --noproxy '*' --max-time 50"

MODE_LINE = re.compile(r'mode = "l\d"')


class Show:
    """Tells what was shown, with the time since the machine came up, and keeps what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._said = ""

    def say(self, text: str) -> None:
        print(f"{time.clock_gettime(time.CLOCK_BOOTTIME):7.1f} s  {text}", flush=True)

    def progress(self, text: str) -> None:
        """What the lab waits for, once each, without the errors that it meets meanwhile."""
        what = text.partition(" (")[0]
        if what != self._said:
            self.say(what)
        self._said = what

    def check(self, what: str, test: Callable[[], str]) -> None:
        """Run it; it returns what was seen, or raises what went wrong."""
        try:
            self.say(f"ok      {what}: {test()}")
        except FAULTS as error:
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


def show_modes(show: Show, extra: Path) -> None:
    """One lab for all modes, since to start one takes longest: its service changes its mode."""
    service = {"name": "default", "port": 8080, "mode": FIRST_MODE}
    extra.write_text(toml_text({"node_health": PATIENT, "services": [service]}))
    lab = Plan(nodes=1, devices=(f"{VIRTIO}/{VETH}",), emulated=True)
    with lab_hosts(lab, show.progress, extra) as hosts:
        show.check("hooks", lambda: hooks(hosts))
        show.check("outputs", lambda: outputs(hosts))
        for mode in MODES:
            if mode != FIRST_MODE:
                change_mode(hosts, mode)
            show.check(f"{mode}, one request", partial(one_request, hosts, mode))
            show.check(f"{mode}, a download", partial(download, hosts))


def change_mode(hosts: LabHosts, mode: str) -> None:
    """Write it into the LB's file and have that read; requests will tell when it is in force."""
    (lb,) = hosts.lbs
    path = Path(hosts.environment(lb)["GALE_CONFIG"])
    head, services = path.read_text().split("[[services]]")
    changed = MODE_LINE.sub(f'mode = "{mode}"', services)
    path.write_text(f"{head}[[services]]{changed}")
    hosts.supervisorctl(lb, "signal", "HUP", "gale:*")


def one_request(hosts: LabHosts, mode: str) -> str:
    """The first whose packets are counted as of this mode: until nodes are prepared for it, a
    service keeps the one that it had.
    """
    answers: list[str] = []

    def is_in_force() -> bool:
        try:
            before = verdicts(hosts, hosts.lbs[0])[MODES[mode]]
            answers.append(request(hosts))
            wait_for(
                lambda: verdicts(hosts, hosts.lbs[0])[MODES[mode]] > before, "a count", timeout_s=5
            )
        except (AssertionError, OSError, subprocess.SubprocessError):
            return False
        return True

    wait_for(is_in_force, f"a request in mode {mode}", CHANGE_TIMEOUT_S, 1)
    return f"answered by {answers[-1]}, and counted as {MODES[mode]}"


def request(hosts: LabHosts) -> str:
    done = hosts.run(hosts.client, "sh", "-c", f"{FETCH} http://{hosts.vip()}:8080/")
    answer = done.stdout.strip()
    assert answer in hosts.nodes, done.stderr or answer
    return answer


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
    return "; ".join(
        f"{state['carries']} by {state['hook']} to {state['interface']}, {state['reason']}"
        for state in states
    )


def main() -> int:
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    show = Show()
    show.say(f"Linux {os.uname().release}")
    for variant in variants():
        show.check(f"programs for {variant.name}", partial(load, variant))
    with tempfile.TemporaryDirectory() as directory:
        try:
            show_modes(show, Path(directory) / "extra.toml")
        except FAULTS as error:
            show.failed.append("the lab")
            show.say(f"FAILED  the lab: {error}")
    show.say(f"failed: {', '.join(show.failed)}" if show.failed else "everything was shown")
    return 1 if show.failed else 0


if __name__ == "__main__":
    sys.exit(main())
