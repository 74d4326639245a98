"""What both files are made of: tables, the machines they name, and what a check of sense finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import ne
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from conf.lines import Key
from conf.values import HostAddress, HostName, Name, Port


@dataclass(frozen=True, slots=True)
class NeedsRestart:
    """Marks a key that a running process cannot change: `Annotated[Name, NEEDS_RESTART]`.

    Whoever asks which keys these are reads the marks (`conf.reload`).
    """

    between: Callable[[Any, Any], bool] = ne
    """Whether a restart is needed from this value to that."""
    when: str = "yes"
    """The same in words, for the reference."""


NEEDS_RESTART = NeedsRestart()


@dataclass(frozen=True, slots=True)
class ClusterWide:
    """Marks a key that all LBs of a cluster are to have alike; one without a mark is each LB's own.

    Whoever asks which keys these are reads the marks: the quorum (`health_numbers`), and the
    reference.
    """

    otherwise: str
    """What becomes of an LB, or of a new value, as long as the files differ."""


ALIKE = ClusterWide("alike")
"""Nobody looks: the operator sees to it."""
COMPARED = ClusterWide("compared")
"""Every LB tells the others its own (`enforce_single_configuration`)."""
STAGED = ClusterWide("staged")
"""A new value is in force once all LBs have read the same."""


class Table(BaseModel):
    """A TOML table: unknown keys are refused, and what was read never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def says(self, field: str) -> bool:
        """Whether the file gives the field, which else has its default."""
        return field in self.model_fields_set


@dataclass(frozen=True, slots=True)
class Finding:
    """Values that are well by themselves and make no sense together.

    `other` is the key that `key` quarrels with, when there is one; `rests_on` are more keys that
    the finding was drawn from. If one of these has a fault of its own, the finding says nothing.
    """

    key: Key
    wrong: str
    expected: str
    other: Key | None = None
    rests_on: tuple[Key, ...] = ()


class Endpoint(Table):
    """Where a machine listens: `{ ip = "192.168.1.2", port = 8081 }`.

    `ip` or `hostname`, exactly one; `host` is whichever was given. A `*.local` name is resolved by
    mDNS, later, by the process that connects: a name not yet resolved is no error of the file.
    `name` says whose keys it has, where keys are used; by default those that stand under its host.
    """

    ip: HostAddress | None = None
    hostname: HostName | None = None
    port: Port = Field(description="the port it listens on")
    name: Name | None = None

    @property
    def host(self) -> str:
        return self.ip or self.hostname or ""

    @property
    def key_name(self) -> str:
        """The name that its keys stand under."""
        return self.name or self.host

    @property
    def host_key(self) -> str:
        """The key that gives the host."""
        return "ip" if self.ip else "hostname"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def endpoint_findings(key: Key, endpoints: tuple[Endpoint, ...]) -> Iterator[Finding]:
    """What is wrong with each entry by itself."""
    for index, endpoint in enumerate(endpoints):
        if endpoint.ip and endpoint.hostname:
            yield Finding(
                (*key, index, "hostname"), "given beside ip", "expected either ip or hostname"
            )
        elif not endpoint.host:
            example = 'expected one of them, such as ip = "192.168.1.2"'
            yield Finding((*key, index), "neither ip nor hostname", example)
