"""Showing an answer of the API: once, or with `--watch` again every second until interrupted.

Watching goes on through restarts of the API: a screen that went away at the first hiccup would be
of no use in the very moment it is wanted for. Meanwhile it shows what was there before, and says
so. With `--json` each answer is an object on a line of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import orjson
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from services.cli.client import ApiError, client_of, refused
from services.cli.invocation import Invocation, print_json
from services.cli.tables import console, show

WATCH_S = 1.0
Watch = Annotated[bool, typer.Option("--watch", help="Again every second.")]
Answer = dict[str, Any]
Picture = Callable[[Answer], RenderableType]


def tell(
    context: typer.Context,
    path: str,
    picture: Picture,
    *,
    watch: bool,
    **parameters: str | int | None,
) -> Answer:
    """Show what is at `path`; returns the answer, the last one if it was watched."""
    invocation = Invocation.of(context)
    client = client_of(invocation)

    def ask() -> Answer:
        answer: Answer = client.get(path, **parameters)
        return answer

    try:
        answer = ask()
    except ApiError as error:
        raise refused(error) from None
    if watch:
        return _watch(ask, answer, picture, as_json=invocation.json)
    if invocation.json:
        print_json(answer)
    else:
        show(picture(answer))
    return answer


def _watch(ask: Callable[[], Answer], answer: Answer, picture: Picture, *, as_json: bool) -> Answer:
    """Until interrupted."""
    trouble = ""
    try:
        if as_json:
            while True:
                typer.echo(trouble or orjson.dumps(answer).decode(), err=bool(trouble))
                time.sleep(WATCH_S)
                answer, trouble = _again(ask, answer)
        with Live(picture(answer), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_S)
                answer, trouble = _again(ask, answer)
                live.update(_with_trouble(picture(answer), trouble), refresh=True)
    except KeyboardInterrupt:
        return answer


def _again(ask: Callable[[], Answer], before: Answer) -> tuple[Answer, str]:
    try:
        return ask(), ""
    except ApiError as error:
        return before, str(error)


def _with_trouble(shown: RenderableType, trouble: str) -> RenderableType:
    if not trouble:
        return shown
    return Group(Text(f"as it was before the API went: {trouble}", "bold red"), shown)
