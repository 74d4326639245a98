"""`gale events`: what happened, and with `--follow` what happens.

Without options: the events the API still keeps, oldest first. `--since BOOT:SEQ` (both stand in
every event of the public stream) begins after that one. `--follow` goes on with new ones, through
restarts of the API: it comes back with the id of the last message, and since a new API process
shows again what its processes still keep, what was shown already is recognised by its origin.

Tables show events; `--json` shows states too: with `--follow` one object per line, else one page.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from operator import itemgetter
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from services.cli.client import ApiError, Client, client_of, refused
from services.cli.invocation import WRONG_USE, Invocation, print_json
from services.cli.tables import STATE_STYLES, console

EVERYTHING = "oldest:0"
"""A position of no boot there ever was: the API answers with all it keeps."""
RETRY_S = 0.5


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until interrupted.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="BOOT:SEQ", help="Begin after this message.")
    ] = None,
) -> None:
    """What happened to the nodes, the LBs and the processes."""
    invocation = Invocation.of(context)
    if since is not None and not _is_position(since):
        typer.echo(f"--since {since}: expected BOOT:SEQ, as events have them", err=True)
        raise typer.Exit(WRONG_USE)
    client = client_of(invocation)
    try:
        if follow:
            _follow(client, since, _Printer(as_json=invocation.json))
        else:
            _page(client, since or EVERYTHING, as_json=invocation.json)
    except ApiError as error:
        raise refused(error) from None


def _is_position(text: str) -> bool:
    boot, _, seq = text.rpartition(":")
    return bool(boot) and seq.isascii() and seq.isdigit()


def _page(client: Client, since: str, *, as_json: bool) -> None:
    page = client.get("/v1/events", since=since)
    whole, following = page, page
    while following["events"]:
        following = client.get("/v1/events", since=following["next"])
        whole = following | {
            "events": [*whole["events"], *following["events"]],
            "complete": whole["complete"] and following["complete"],
            "next": following["next"],
        }
    if as_json:
        print_json(whole)
        return
    if since != EVERYTHING and not whole["complete"]:
        typer.echo(f"some of what followed {since} is no longer kept", err=True)
    printer = _Printer(as_json=False)
    # The log is in the order of arrival: after a restart of the API, process by process.
    news = [message for message in whole["events"] if printer.is_news(message)]
    for message in sorted(news, key=itemgetter("time_ms")):
        printer.write(message)


def _follow(client: Client, since: str | None, printer: _Printer) -> None:
    """Until interrupted. Only an API that was never there is an error."""
    position, connected, lost = since, False, False
    try:
        while True:
            try:
                for message in client.stream("/v1/events", position):
                    connected, lost, position = True, False, message.id
                    printer.print(orjson.loads(message.data))
            except ApiError as error:
                if not connected:
                    raise
                if not lost:
                    typer.echo(f"{error}; trying again", err=True)
                lost = True
            time.sleep(RETRY_S)
    except KeyboardInterrupt:
        return


class _Printer:
    """Prints each message once, as a line."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = console()
        self._seen: dict[str, tuple[str, int]] = {}

    def print(self, message: dict[str, Any]) -> None:
        if self.is_news(message):
            self.write(message)

    def is_news(self, message: dict[str, Any]) -> bool:
        """Whether it was not shown before; to be asked once, in the order of the stream."""
        return message["topic"].startswith("state.") or not self._was_shown(message)

    def write(self, message: dict[str, Any]) -> None:
        if self._as_json:
            typer.echo(orjson.dumps(message).decode())
        elif message["topic"].startswith("flow.") and message["data"]:
            for line in _flow_lines(message):
                self._console.print(line)
        elif not message["topic"].startswith("state."):
            self._console.print(_line(message, _words(message["topic"], message["data"])))

    def _was_shown(self, message: dict[str, Any]) -> bool:
        origin = message.get("origin")
        if origin is None:
            return False
        source, boot, seq = message["source"], origin["boot"], origin["seq"]
        last_boot, last_seq = self._seen.get(source, ("", 0))
        if boot == last_boot and seq <= last_seq:
            return True
        self._seen[source] = (boot, seq)
        return False


def _line(message: dict[str, Any], words: str) -> Text:
    at = datetime.fromtimestamp(message["time_ms"] / 1_000)
    line = Text(f"{at:%Y-%m-%d %H:%M:%S}.{message['time_ms'] % 1_000:03d}  ")
    topic = message["topic"]
    line.append(f"{topic.rstrip('.'):<20}", STATE_STYLES.get(topic.split(".")[1], "bold"))
    return line.append(f"  {message['host']}  {words}")


def _flow_lines(message: dict[str, Any]) -> Iterator[Text]:
    """A line for each flow; the client first, since that is who is looked for."""
    data = message["data"]
    for flow in data["flows"]:
        began = datetime.fromtimestamp(flow["began_ms"] / 1_000)
        owner = f"{flow['service']} at {flow['node_id']}" if flow["node_id"] else "node unknown"
        yield _line(
            message,
            f"{flow['protocol']} {flow['client']} to {flow['vip']}, as {flow['snat']} to"
            f" {flow['node']} ({owner}), began {began:%H:%M:%S.%f}"[:-3],
        )
    if data["left_out"]:
        yield _line(message, f"and {data['left_out']} more, which found no room")


def _words(topic: str, data: dict[str, Any] | None) -> str:
    """The event in a sentence; one this program does not know, by its fields."""
    if data is None:
        return "what it said is no longer kept"
    try:
        if topic.startswith("node."):
            previous = f"{data['previous']} -> " if data["previous"] else ""
            change = f"{data['name']} ({data['id']}) {previous}{data['state']}"
            return f"{change}: {data['reason']}" if data["reason"] else change
        if topic == "table.committed.":
            changes = ", ".join(data["changes"]) or "nothing new"
            return f"term {data['term']} epoch {data['epoch']}, {data['nodes_up']} up: {changes}"
        if topic.startswith("quorum."):
            peer = f", peer {data['peer']}" if data["peer"] else ""
            return f"term {data['term']}, leader {data['leader']}{peer}: {data['reason']}"
        if topic.startswith("vip."):
            return f"{data['address']} at {data['holder']}, term {data['term']}: {data['reason']}"
        if topic.startswith("dataplane."):
            how = f" {data['flavour']}" if data["flavour"] else ""
            return f"{data['program']} on {data['interface']}{how}: {data['reason']}"
        if topic == "process.started.":
            adopted = f": {data['adopted']}" if data["adopted"] else ""
            return f"{data['process']} pid {data['pid']}, gale {data['version']}{adopted}"
    except KeyError:
        pass
    return " ".join(f"{key}={value}" for key, value in data.items())
