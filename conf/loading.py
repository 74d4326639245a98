"""From a file to a configuration, or to everything that is wrong with it.

Three steps: tomli reads, pydantic checks the shape of each value, `findings()` of the result checks
what the values mean together. pydantic reports all wrong shapes but then makes no object, and the
third step would never see a file that has one. So a *draft* is made: the file without its wrong
keys, with stand-ins for the few that must be there. It is thrown away after its findings are
collected; a file with any problem is never used, not even in part.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from conf.lb import LbConfig
from conf.lines import Key
from conf.node import NodeConfig
from conf.source import ConfigError, Problem, Source
from conf.table import Finding
from conf.values import shown

STAND_INS: Mapping[Key, Any] = {
    ("local", "net_interface_private"): "stand-in-1",
    ("local", "net_interface_public"): "stand-in-2",
    ("load_balancer", "addresses"): [{"hostname": "stand-in", "port": 7070}],
}
"""Keys without a default, with a value that clashes with nothing."""

_GONE = object()
"""Marks an element of a list that a draft leaves out."""


ConfigT = TypeVar("ConfigT", LbConfig, NodeConfig)


def load_lb(path: Path) -> LbConfig:
    """Read an LB's file; raises `ConfigError` with all that is wrong with it."""
    return _checked(Source.read(path), LbConfig)


def load_node(path: Path) -> NodeConfig:
    """Read a node's file; raises `ConfigError` with all that is wrong with it."""
    return _checked(Source.read(path), NodeConfig)


def kind_of(source: Source) -> type[LbConfig] | type[NodeConfig]:
    """Whose file it is, by the tables it has: misspelt ones count for what they resemble."""
    lb, node = set(_keys(LbConfig)), set(_keys(NodeConfig))
    tables = [
        next(iter(difflib.get_close_matches(name, lb | node, n=1)), name)
        for name, value in source.data.items()
        if isinstance(value, dict | list)
    ]
    of_lb = sum(name in lb - node for name in tables)
    of_node = sum(name in node - lb for name in tables)
    return NodeConfig if of_node > of_lb else LbConfig


def load_either(source: Source) -> LbConfig | NodeConfig:
    """Check a file of either kind; raises `ConfigError`."""
    if kind_of(source) is NodeConfig:
        return _checked(source, NodeConfig)
    return _checked(source, LbConfig)


def _checked(source: Source, model: type[ConfigT]) -> ConfigT:
    try:
        config = model.model_validate(source.data)
    except ValidationError as error:
        problems = list(_shape_problems(source, model, error.errors()))
        problems += _sense_problems(source, _Draft(source.data).findings(model))
        raise ConfigError(problems) from None
    if problems := list(_sense_problems(source, config.findings())):
        raise ConfigError(problems)
    return config


def _sense_problems(source: Source, findings: Iterable[Finding]) -> Iterator[Problem]:
    for finding in findings:
        where = ""
        if finding.other is not None and finding.other in source.lines:
            where = f" (line {source.lines.line_of(finding.other)})"
        yield source.problem(finding.key, f"{finding.wrong}{where}, {finding.expected}")


# --------------------------------------------------------------------------- wrong shapes


def _shape_problems(
    source: Source, model: type[BaseModel], errors: Iterable[ErrorDetails]
) -> Iterator[Problem]:
    for error in errors:
        key = error["loc"]
        match error["type"]:
            case "missing":
                field = _keys(_table_at(model, key[:-1]))[str(key[-1])]
                message = f"missing, expected {field.description}"
            case "extra_forbidden":
                message = _unknown(model, key, error["input"])
            case "model_type" | "model_attributes_type":
                message = f"{shown(error['input'])} is no table, expected {_table_form(key)}"
            case "tuple_type":
                message = f"{shown(error['input'])} is no list, expected {_list_form(key)}"
            case _:
                message = error["msg"]
        yield source.problem(key, message)


def _table_form(key: Key) -> str:
    return f"[{key[-1]}]" if len(key) == 1 else "{ ... }"


def _list_form(key: Key) -> str:
    return f"[[{key[-1]}]]" if len(key) == 1 else "[ ... ]"


def _unknown(model: type[BaseModel], key: Key, value: Any) -> str:
    """What an unknown key may have been meant to be."""
    name = str(key[-1])
    noun = "table" if len(key) == 1 and isinstance(value, dict | list) else "key"
    for table in _keys(model) if noun == "key" else ():
        if name in _keys(_table_at(model, (table,))):
            return f"unknown key here, expected in [{table}]"
    known = list(_keys(_table_at(model, key[:-1])))
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f'unknown {noun}, did you mean "{near[0]}"?'
    return f"unknown {noun}, expected one of {', '.join(known)}"


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a table, by the keys they have in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _table_at(model: type[BaseModel], key: Key) -> type[BaseModel]:
    for part in key:
        if isinstance(part, str):
            annotation = _keys(model)[part].annotation
            model = (get_args(annotation) or (annotation,))[0]
    return model


# --------------------------------------------------------------------------- the draft


class _Draft:
    """A file without its wrong keys."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = copy.deepcopy(data)
        self._kept: dict[Key, list[int]] = {}
        """Of each list, where the elements that are left stood in the file."""
        self._faults: set[Key] = set()

    def findings(self, model: type[ConfigT]) -> Iterator[Finding]:
        """What makes no sense in what is left, as far as no fault bears on it."""
        config = self._what_is_left(model)
        for found in config.findings() if config is not None else ():
            finding: Finding = self._as_in_file(found)
            keys = (finding.key, finding.other, *finding.rests_on)
            if not any(self._is_faulty(key) for key in keys if key is not None):
                yield finding

    def _what_is_left(self, model: type[ConfigT]) -> ConfigT | None:
        """Take faults out until none is left: removing one may show another, of what needs it."""
        while True:
            self._kept.clear()
            try:
                return model.model_validate(self._left(self._data, ()))
            except ValidationError as error:
                mended = [self._mend(each) for each in error.errors()]
                if not any(mended):
                    return None

    def _left(self, value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {name: self._left(each, (*key, name)) for name, each in value.items()}
        if isinstance(value, list):
            self._kept[key] = [index for index, each in enumerate(value) if each is not _GONE]
            return [self._left(value[index], (*key, index)) for index in self._kept[key]]
        return value

    def _mend(self, error: ErrorDetails) -> bool:
        """Take a wrong key out; for a missing one, put a stand-in or drop the table it lacks in.

        False when there was nothing to do.
        """
        key = self._key_in_file(error["loc"])
        self._faults.add(key)
        if error["type"] == "missing" and key in STAND_INS:
            self._data.setdefault(str(key[0]), {})[key[1]] = STAND_INS[key]
            return True
        *parents, last = key[:-1] if error["type"] == "missing" else key
        holder: Any = self._data
        for part in parents:
            holder = holder[part]
            if holder is _GONE:  # for another of its faults
                return True
        if isinstance(last, int):
            holder[last] = _GONE
            return True
        return holder.pop(last, _GONE) is not _GONE

    def _key_in_file(self, key: Key) -> Key:
        original: Key = ()
        for part in key:
            kept = self._kept.get(original)
            if isinstance(part, int) and kept:
                part = kept[part]
            original = (*original, part)
        return original

    def _as_in_file(self, finding: Finding) -> Finding:
        return replace(
            finding,
            key=self._key_in_file(finding.key),
            other=self._key_in_file(finding.other) if finding.other else None,
            rests_on=tuple(map(self._key_in_file, finding.rests_on)),
        )

    def _is_faulty(self, key: Key) -> bool:
        """Whether the key, what it stands in, or anything in it has a fault of its own."""
        return any(key[: len(fault)] == fault[: len(key)] for fault in self._faults)
