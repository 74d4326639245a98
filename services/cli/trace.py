"""`gale trace`: what the loaded programs would do with a packet, and why.

    gale trace tcp 192.0.2.7:40000 10.80.0.100:8080
    gale trace udp 192.0.2.7:5000 10.80.0.100:53 --all-lbs

The programs of this LB look at such a packet over the live maps; nothing is sent or changed.
Without flags it is the packet that fits: a SYN, or where the flow is known an ACK of it. `--reply`
asks about a node's packet, from its address and port to an SNAT address and port.

Exit code 0: the packet is forwarded, or answered as it should be, or is no service's; 1: it is
dropped, or the LBs do not agree; a node chosen for a new flow must be the same on all of them.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from services.cli.client import ApiError, Client, api_port_of, client_of, refused
from services.cli.invocation import NO, WELL, WRONG_USE, Invocation, print_json
from services.cli.tables import show, table

TIMEOUT_S = 70.0
"""The first trace waits for its programs to be compiled."""
STYLES = {"forward": "green", "answer": "yellow", "pass": "cyan", "drop": "bold red"}

Flag = Annotated[bool, typer.Option(help="TCP: with this flag.")]


def trace(
    context: typer.Context,
    protocol: Annotated[str, typer.Argument(metavar="tcp|udp|icmp")],
    source: Annotated[str, typer.Argument(metavar="SRC:PORT")],
    destination: Annotated[str, typer.Argument(metavar="VIP:PORT")],
    syn: Flag = False,
    ack: Flag = False,
    fin: Flag = False,
    rst: Flag = False,
    reply: Annotated[bool, typer.Option("--reply", help="A node's packet, to a client.")] = False,
    all_lbs: Annotated[
        bool, typer.Option("--all-lbs", help="Ask every LB; fail if they disagree.")
    ] = False,
) -> None:
    """What the loaded programs would do with a packet, and why; changes nothing."""
    from services.dataplane.trace import WrongQuestion, disagreements, read_question

    invocation = Invocation.of(context)
    said = {"syn": syn, "ack": ack, "fin": fin, "rst": rst}
    question: dict[str, Any] = {
        "protocol": protocol,
        "source": source,
        "destination": destination,
        "flags": [flag for flag, wanted in said.items() if wanted],
        "reply": reply,
    }
    try:
        read_question(question)
    except WrongQuestion as wrong:
        typer.echo(str(wrong), err=True)
        raise typer.Exit(WRONG_USE) from None
    client = client_of(invocation)
    try:
        clients = _all_lbs(client, api_port_of(invocation)) if all_lbs else [client]
        answers = [each.post("/v1/trace", question, TIMEOUT_S) for each in clients]
    except ApiError as error:
        raise refused(error) from None
    apart = disagreements(answers)
    if invocation.json:
        print_json({"agree": not apart, "disagreements": apart, "traces": answers})
    else:
        _tell(answers, apart)
    dropped = any(answer["verdict"] == "drop" for answer in answers)
    raise typer.Exit(NO if apart or dropped else WELL)


def _all_lbs(own: Client, api_port: int) -> list[Client]:
    """This LB, and the others of the quorum at their own addresses."""
    quorum = own.get("/v1/quorum")
    others = [each for each in quorum["members"] if each["name"] != quorum["name"]]
    return [own, *(Client(api_port, _host(each["address"])) for each in others)]


def _host(address: str) -> str:
    return address.partition(":")[0]


def _tell(answers: list[dict[str, Any]], apart: list[str]) -> None:
    for answer in answers:
        head = Text(f"{answer['lb']}  {answer['packet']}  ")
        head.append(answer["verdict"].upper(), STYLES[answer["verdict"]])
        if answer["node"]:
            head.append(f"  to {answer['node']}")
        show(head, *(Text(f"  {number}. {step}") for number, step in _numbered(answer["steps"])))
    if len(answers) > 1:
        rows = [
            [*(str(answer[field] or "") for field in ("lb", "verdict", "node", "reason"))]
            for answer in answers
        ]
        show(table("", ("LB", "verdict", "node", "reason"), rows))
    for line in apart:
        show(Text(f"the load balancers disagree: {line}", "bold red"))


def _numbered(steps: list[str]) -> list[tuple[int, str]]:
    return list(enumerate(steps, start=1))
