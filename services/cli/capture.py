"""`gale capture`: packets as they come into the programs of this LB and as they leave, with why.

    gale capture -w all.pcapng
    gale capture tcp and host 192.0.2.7 and port 8080 -w one.pcapng
    gale capture drop -w - | wireshark -k -i -

Each packet of a program is two in the file: as it came, and as it left, rewritten, wrapped, or
turned into the answer; one that is dropped is there only as it came. The comment of each says which
hook, the verdict and the reason.

The filter: all of `tcp`, `udp`, `icmp`, `ip`, `ip6`, `arp`, `host ADDRESS`, `net ADDRESS/BITS`,
`port N` (these three also behind `src` or `dst`) that are named must hold, of the packet as it came
or as it left: so a client's address finds the replies to it too. Of `pass`, `forward`, `answer`,
`drop` and the reasons one of those named must hold, and likewise of the hooks.

It ends after `--packets`, `--size` or `--seconds`, whatever comes first, or by Ctrl-C. Meanwhile
the dataplane has other programs on its hooks, which do the same and show packets besides; it puts
the ordinary ones back when this ends, and five seconds after this program was killed. Without a
capture nothing of it costs anything. Packets that come faster than they can be written are left
out, and counted.

Exit code 0: the file is written; 1: there is no capture, or it ended before its time.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
import zmq

from bpf.passage import MOST_KEPT, Passage, read_passage
from bpf.ring import RecordRing
from bpf.syscall import get_object, map_shape
from bus import topics
from bus.commands import CommandError, request
from conf import Paths
from services.cli.invocation import NO, WELL, WRONG_USE, Invocation, print_json
from services.cli.pcapng import Direction, Frame, VerdictBy, header, packet

PACKETS, SIZE_MB, SECONDS, KEPT = 10_000, 100, 60, 2_048
RENEW_S = 1.0
LOADING_S = 0.1
TURN_MS = 200
TIMEOUT_MS = 3_000
READY_S = 180.0
"""The first capture waits for its programs to be compiled."""
_DROP, _PASS = "drop", "pass"


class _Ended(Exception):  # noqa: N818 - it says why
    """The capture is over before its bounds are reached; the message says why."""


@dataclass(slots=True)
class _Bounds:
    packets: int
    size: int
    ends_s: float


def capture(
    context: typer.Context,
    file: Annotated[
        Path, typer.Option("-w", "--write", metavar="FILE", help="The pcapng file; - is stdout.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILTER]", help="tcp, host A, port N, drop, a reason, ..."),
    ] = None,
    packets: Annotated[
        int, typer.Option("--packets", min=1, help="So many packets at most.")
    ] = PACKETS,
    size: Annotated[
        int, typer.Option("--size", min=1, metavar="MB", help="A file of so many MB at most.")
    ] = SIZE_MB,
    seconds: Annotated[
        int, typer.Option("--seconds", min=1, max=86_400, help="So long at most.")
    ] = SECONDS,
    kept: Annotated[
        int,
        typer.Option("--bytes", min=64, max=MOST_KEPT, help="Of each packet, so many bytes."),
    ] = KEPT,
) -> None:
    """Write packets as they enter and leave the programs, with the reason, as pcapng."""
    invocation = Invocation.of(context)
    invocation.lb_config()
    asked = {"filter": words or [], "kept": kept, "seconds": seconds}
    with ExitStack() as opened:
        interrupt = _Interrupt(opened)
        owner = _Owner(opened, Paths.from_environment().run_dir, asked, interrupt)
        output = _opened(opened, file)
        owner.begin()
        opened.callback(owner.end)
        told = owner.until_on()
        writer = _Writer(output, told, " ".join(words or []), kept)
        ring = _ring(opened, Path(told["ring"]))
        places = ", ".join(f"{hook} on {interface}" for _, hook, interface in told["hooks"])
        typer.echo(f"capturing at {places}; Ctrl-C ends it", err=True)
        ends_s = time.monotonic() + seconds
        why = _follow(owner, ring, writer, interrupt, _Bounds(packets, size * 1_000_000, ends_s))
        lost = owner.end()
        for record in ring.take():
            writer.add(record, packets, size * 1_000_000)
    _report(file, writer, lost, why, as_json=invocation.json)
    raise typer.Exit(WELL if why.is_well else NO)


@dataclass(frozen=True, slots=True)
class _Why:
    text: str
    is_well: bool = True


class _Interrupt:
    """Whether Ctrl-C has come: whenever it does, the capture ends in good order."""

    def __init__(self, opened: ExitStack) -> None:
        self.came = False
        opened.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, self._come)

    def _come(self, *_: object) -> None:
        self.came = True


class _Owner:
    """Asks the dataplane, and goes on asking for as long as the capture is to last."""

    def __init__(
        self, opened: ExitStack, run_dir: Path, asked: dict[str, Any], interrupt: _Interrupt
    ) -> None:
        self._interrupt = interrupt
        self._path = topics.command_path(run_dir, topics.DATAPLANE)
        self._asked = asked
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        opened.callback(self._context.term)
        self._id = ""
        self._lost = 0
        self._is_over = False

    def _ask(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return request(self._context, self._path, verb, arguments, TIMEOUT_MS)

    def begin(self) -> None:
        try:
            self._id = self._ask("capture", self._asked)["id"]
        except CommandError as refusal:
            raise _refused(str(refusal)) from None
        except TimeoutError:
            raise _refused(
                "the dataplane does not answer: is it running, on this machine?"
                " supervisorctl status gale:dataplane"
            ) from None

    def until_on(self) -> dict[str, Any]:
        """What the dataplane says once its programs are on the hooks."""
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s:
            if self._interrupt.came:
                raise _refused("interrupted before it had begun")
            try:
                told = self.renew()
            except _Ended as ended:
                raise _refused(str(ended)) from None
            if told["on"]:
                return told
            time.sleep(LOADING_S)
        raise _refused(f"the programs of capture are not there after {READY_S:.0f} s")

    def renew(self) -> dict[str, Any]:
        """Raises `_Ended`."""
        try:
            told = self._ask("capture_renew", {"id": self._id})
        except CommandError as refusal:
            self._is_over = True
            raise _Ended(str(refusal)) from None
        except TimeoutError:
            raise _Ended("the dataplane does not answer any more") from None
        self._lost = told.get("lost", self._lost)
        return told

    def end(self) -> int:
        """How many packets were lost; the capture may have ended by itself."""
        if not self._is_over:
            self._is_over = True
            with contextlib.suppress(CommandError, TimeoutError):
                self._lost = self._ask("capture_end", {"id": self._id})["lost"]
        return self._lost


def _refused(why: str) -> typer.Exit:
    typer.echo(why, err=True)
    return typer.Exit(WRONG_USE if why.startswith("filter:") else NO)


def _opened(opened: ExitStack, file: Path) -> BinaryIO:
    """Packets of clients will stand in it: nobody but its owner may read it."""
    if str(file) == "-":
        return sys.stdout.buffer
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(f"{file}: {error.strerror}") from None
    return opened.enter_context(os.fdopen(fd, "wb"))


def _ring(opened: ExitStack, path: Path) -> RecordRing:
    try:
        fd = get_object(path)
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}; are you root?") from None
    opened.callback(os.close, fd)
    ring = RecordRing(fd, map_shape(fd)[3])
    opened.callback(ring.close)
    return ring


# --------------------------------------------------------------------------- the file


class _Writer:
    """From records of the ring to packets of the file."""

    def __init__(self, output: BinaryIO, told: dict[str, Any], words: str, kept: int) -> None:
        self._output = output
        self._reasons = told["reasons"]
        self._hooks = {number: hook for number, hook, _ in told["hooks"]}
        self._places = {number: place for place, number in enumerate(self._hooks)}
        names = [f"{interface} {hook}" for _, hook, interface in told["hooks"]]
        # The clock of the records begins with the machine.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self.packets = self.frames = self.bytes = 0
        about = f"gale capture {words}".rstrip()
        self._write(header(f"gale {version('gale')}", about, names, kept))
        self._output.flush()

    def add(self, record: bytes, packets: int, size: int) -> bool:
        """False: it found no room within these bounds."""
        passage = read_passage(record)
        blocks = [packet(frame) for frame in self._frames(passage)]
        if self.packets >= packets or self.bytes + sum(map(len, blocks)) > size:
            return False
        for block in blocks:
            self._write(block)
        self.packets += 1
        self.frames += len(blocks)
        return True

    def flush(self) -> None:
        self._output.flush()

    def _write(self, block: bytes) -> None:
        self._output.write(block)
        self.bytes += len(block)

    def _frames(self, passage: Passage) -> Iterator[Frame]:
        hook = self._hooks[passage.hook]
        reason, kind, text = self._reasons[passage.reason]
        what = f"{kind}: {text} ({reason})"
        by = VerdictBy.XDP if hook.startswith("xdp") else VerdictBy.TC

        def frame(data: bytes, length: int, comment: str, direction: Direction) -> Frame:
            return Frame(
                interface=self._places[passage.hook],
                time_ns=self._epoch_ns + passage.time_ns,
                data=data,
                length=length,
                comment=comment,
                direction=direction,
                number=self.packets + 1,
                verdict=(by, passage.verdict),
            )

        comes = f"enters {hook}; {what}"
        yield frame(passage.entry, passage.entry_bytes, comes, Direction.INBOUND)
        if passage.exit:
            goes = f"leaves {hook}; {what}"
            yield frame(passage.exit, passage.exit_bytes, goes, Direction.OUTBOUND)


def _follow(
    owner: _Owner, ring: RecordRing, writer: _Writer, interrupt: _Interrupt, bounds: _Bounds
) -> _Why:
    """Write what comes until a bound is reached; why it is over."""
    poll = select.poll()
    poll.register(ring.fd, select.POLLIN)
    renew_s = time.monotonic() + RENEW_S
    try:
        while (now_s := time.monotonic()) < bounds.ends_s:
            if interrupt.came:
                return _Why("interrupted")
            if now_s >= renew_s:
                owner.renew()
                renew_s = now_s + RENEW_S
            poll.poll(TURN_MS)
            for record in ring.take():
                if not writer.add(record, bounds.packets, bounds.size):
                    return _Why(_full(writer, bounds))
            writer.flush()
            if writer.packets >= bounds.packets:
                return _Why(_full(writer, bounds))
    except BrokenPipeError:
        return _Why("nobody reads on")
    except _Ended as ended:
        return _Why(str(ended), is_well=time.monotonic() >= bounds.ends_s)
    return _Why("its time is over")


def _full(writer: _Writer, bounds: _Bounds) -> str:
    if writer.packets >= bounds.packets:
        return f"{bounds.packets} packets are written"
    return f"the file would be larger than {bounds.size // 1_000_000} MB"


def _report(file: Path, writer: _Writer, lost: int, why: _Why, *, as_json: bool) -> None:
    to_stdout = str(file) == "-"
    if as_json and not to_stdout:
        print_json(
            {
                "file": str(file),
                "packets": writer.packets,
                "frames": writer.frames,
                "bytes": writer.bytes,
                "lost": lost,
                "ended": why.text,
            }
        )
        return
    typer.echo(
        f"{file}: {writer.packets} packets, {writer.frames} frames, {writer.bytes} bytes;"
        f" {lost} packets lost; {why.text}",
        err=True,
    )
