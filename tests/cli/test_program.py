"""The program itself: what every program is asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click import Context
from typer.main import get_command
from typer.testing import CliRunner

from services.cli.main import COMMANDS, app

GALE = Path(sys.executable).with_name("gale")


def test_it_says_which_version_it_is() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"gale {version('gale')}\n")


GROUPS = {
    "node": ("drain", "enable", "ban", "pardon", "weight"),
    "quorum": ("add", "remove", "recover"),
    "lab": ("up", "down", "status", "exec", "fault"),
    "lab fault": ("cut", "heal", "one-way", "partial", "kill", "pause", "resume", "stop", "start"),
}
BELOW = tuple(f"{group} {command}" for group, commands in GROUPS.items() for command in commands)


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *COMMANDS, *BELOW])
def test_help_is_given_by_its_short_name_too(command: str, option: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), option])
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    assert "-h, --help" in " ".join(result.stdout.split()) or "-h" in result.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_these_commands(group: str) -> None:
    command: Any = get_command(app)
    for word in group.split():
        command = command.get_command(Context(command), word)
    assert set(command.list_commands(Context(command))) == set(GROUPS[group])


OPTIONS = {
    "check": "--host",
    "status": "--watch",
    "flows": "--node",
    "node drain": "--within --why",
    "node enable": "--why",
    "node ban": "--why",
    "node pardon": "--why",
    "events": "--follow --since",
    "capture": "-w",
    "plan": "--without --weight",
    "trace": "--all-lbs",
    "lab up": "--mode --lbs --nodes --config",
}
"""That scripts may rely on."""


@pytest.mark.parametrize("words", OPTIONS)
def test_a_command_has_these_options(words: str) -> None:
    command: Any = get_command(app)
    for word in words.split():
        command = command.get_command(Context(command), word)
    options = {each for parameter in command.params for each in parameter.opts}
    assert set(OPTIONS[words].split()) <= options


@pytest.mark.parametrize("words", ["nosuch", *(f"{group} nosuch" for group in GROUPS)])
def test_a_command_that_is_not_there_is_wrong_use(words: str) -> None:
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert "No such command 'nosuch'" in result.stderr
    assert "-h" in result.stderr


def test_a_command_of_the_lab_keeps_its_own_options() -> None:
    result = CliRunner().invoke(app, ["lab", "exec", "-h"])
    assert result.exit_code == 0
    assert "Run a command on a machine of the lab" in result.stdout


def test_a_shell_can_ask_for_the_commands() -> None:
    asked = {"_GALE_COMPLETE": "complete_bash", "COMP_WORDS": "gale no", "COMP_CWORD": "1"}
    done = subprocess.run(
        [GALE], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"node", "nodes"}


@pytest.mark.parametrize(
    ("shell", "words", "expected"),
    [
        ("bash", "gale tr", "trace"),
        ("bash", "gale pl", "plan"),
        ("zsh", "gale sup", "support"),
        ("fish", "gale rel", "reload"),
    ],
)
def test_shells_complete_commands(shell: str, words: str, expected: str) -> None:
    environment = {
        "_GALE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    program = "import sys; sys.argv[0] = 'gale'; from services.cli.main import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in told.stdout, told.stderr
    assert "check" not in told.stdout


def test_every_command_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    documented = set(re.findall(r"^## `gale ([a-z]+)", page, re.MULTILINE))
    assert set(COMMANDS) - documented == set()
