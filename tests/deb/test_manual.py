"""The man pages: everything of the program stands in them, and man can read them."""

from __future__ import annotations

import pytest

from deb.build import PROCESSES
from deb.manual import escaped, page_of_process, page_of_program
from services.cli.main import COMMANDS


def test_every_command_has_a_section() -> None:
    page = page_of_program()
    for name in COMMANDS:
        assert f"\n.SS {escaped(f'gale {name}')}\n" in page


def test_the_commands_of_a_group_have_sections_too() -> None:
    assert "\n.SS gale lab up\n" in page_of_program()


def test_options_are_told_with_what_they_do() -> None:
    page = page_of_program()
    assert "\n.B \\-\\-keep\\-maps\n" in page
    assert "conntrack and counters" in page


@pytest.mark.parametrize("line", [".start", "'quoted"])
def test_a_line_of_text_is_never_a_request(line: str) -> None:
    assert escaped(line) == f"\\&{line}"


@pytest.mark.parametrize(("name", "module"), PROCESSES.items())
def test_a_process_has_a_page_with_its_name_and_exit_statuses(name: str, module: str) -> None:
    page = page_of_process(name, module)
    assert page.startswith(f".TH {name.upper()} 8\n.SH NAME\n{name} \\- ")
    assert "\n.SH EXIT STATUS\n" in page
