"""`make reference`: the pages below docs/reference/, made from the code, so that they are right.

    api.md       every path, from the OpenAPI document, and the fields of what is sent
    metrics.md   every metric, from a scrape
    reasons.md   every reason that a packet can be given, from bpf/kernel/reasons.h
    keys.md      every key of both files, from the models and the comments of the shipped files
    ports.md     every port, from the defaults
    timeouts.md  every duration that the code knows by name, and every key that is one
    limits.md    likewise every limit on size and number

Words come from where a developer writes them: the docstring of an attribute, the comment of a key.
`tests/test_reference.py` finds a page that is not what this makes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, TypeAdapter, ValidationError

from conf.lb import LbConfig
from conf.node import NodeConfig
from conf.table import ClusterWide, NeedsRestart
from conf.values import duration_text
from services.api.guard import Guard, Token
from services.api.metrics import Scrape, exposition
from services.api.routes import application
from services.dataplane.counters import reasons
from tests.api.test_metrics import LOCAL, full

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / "docs" / "reference"
MADE = "<!-- Made from the code by `make reference`: change it there. -->\n"
SHIPPING = ("bus", "conf", "services", "bpf")
SAID_HERE = {
    ("lb.toml", "[[virtual_ips]]", "snat_addresses"): "up to eight instead of the one",
    ("lb.toml", "[[services]]", "node_port"): "the nodes' port; another than port in mode l4 only",
    ("lb.toml", "[[services]]", "port"): "the clients' port, or a range of them",
    ("lb.toml", "[[services]]", "protocol"): "of its packets",
}
"""What no comment of the shipped file says by itself."""
FILLED_IN = {"node_port": "as `port`", "replication_port": "the quorum's and 1"}
"""Defaults that come from another key."""
FILES: dict[str, tuple[type[BaseModel], Path]] = {
    "lb.toml": (LbConfig, ROOT / "conf" / "lb.toml"),
    "node.toml": (NodeConfig, ROOT / "conf" / "node.toml"),
}


def main() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (DIRECTORY / name).write_text(text)


def pages() -> dict[str, str]:
    """By the file's name: what is to be in it."""
    return {
        "api.md": _api(),
        "keys.md": _keys(),
        "limits.md": _constants(
            "Limits",
            "What is bounded, and by how much. One that can be set is a key: [keys.md](keys.md).",
            re.compile(r"^(MOST|LARGEST|LONGEST|KEPT)_"),
        ),
        "metrics.md": _metrics(),
        "ports.md": _ports(),
        "reasons.md": _reasons(),
        "timeouts.md": _timeouts(),
    }


def _page(title: str, lead: str, *parts: str) -> str:
    return "\n".join((MADE, f"# {title}\n", f"{lead}\n", *parts)).rstrip() + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(_cell(each) for each in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --------------------------------------------------------------------------- the API


class _Nobody:
    """A process that is asked for its routes alone."""

    def __init__(self) -> None:
        self.fold = full()

    def scrape(self) -> Scrape:
        return Scrape(self.fold, LOCAL, {}, {}, 0)


def _api() -> str:
    guard = Guard(Token(lambda: None), lambda: ())
    nobody: Any = _Nobody()
    document = application(nobody, "any", guard).openapi()
    schemas = document["components"]["schemas"]
    words = _words_of_attributes()
    parts = ["## Paths\n"]
    for path, operations in sorted(document["paths"].items()):
        parts += [_operation(path, method, each) for method, each in operations.items()]
    parts.append("## What is sent\n")
    parts += [
        _schema(name, schema, words)
        for name, schema in sorted(schemas.items())
        if name != "Problem"
    ]
    lead = (
        "At `http://ADDRESS:5555` (`local.api_port`) on loopback and the private interface."
        " Refusals are problem+json (RFC 9457): `type`, `title`, `status`, and `detail` for the"
        " operator. Every answer has an `ETag`; a change with a stale `If-Match` gets 412. Changes"
        " need the token of `security.api_token_file` (`Authorization: Bearer TOKEN`); where none"
        " is configured they are taken from loopback alone. `observed_ms` says how old a statement"
        " is."
    )
    return _page("The HTTP API", lead, *parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    lines = [f"### `{method.upper()} {path}`\n", f"{_cell(operation.get('description', ''))}\n"]
    given = [
        (f"`{each['name']}`", each["in"], _type(each["schema"]), each.get("description", ""))
        for each in operation.get("parameters", ())
    ]
    if given:
        lines.append(_table(("parameter", "in", "type", "meaning"), given))
    body = operation.get("requestBody", {}).get("content", {})
    lines += [f"Body: {_type(each['schema'])}\n" for each in body.values()]
    rows = []
    for status, answer in operation["responses"].items():
        what = ", ".join(
            f"`{kind}` {_type(each.get('schema', {}))}"
            for kind, each in answer.get("content", {}).items()
        )
        rows.append((status, "a problem" if status >= "4" else what, answer.get("description", "")))
    lines.append(_table(("answer", "body", "when"), rows))
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    bounds = [
        f"{word} {schema[name]}"
        for name, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most"))
        if name in schema
    ]
    return " ".join([schema.get("type", "anything"), *bounds])


def _schema(name: str, schema: dict[str, Any], words: dict[str, dict[str, str]]) -> str:
    meanings = words.get(name, {})
    rows = [
        (f"`{field}`", _type(each), meanings.get(field, ""))
        for field, each in schema.get("properties", {}).items()
    ]
    about = meanings.get("", "") or _cell(schema.get("description", ""))
    lines = [f"### {name}\n", *([f"{_cell(about)}\n"] if about else [])]
    return "\n".join([*lines, _table(("field", "type", "meaning"), rows) if rows else ""])


def _words_of_attributes() -> dict[str, dict[str, str]]:
    """By class: what the strings below its attributes say, and under "" its own docstring."""
    found: dict[str, dict[str, str]] = {}
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                words = dict(_attribute_words(node.body))
                found[node.name] = {"": ast.get_docstring(node) or ""} | words
    return found


def _attribute_words(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, below in pairwise(body):
        names = _assigned(statement)
        if names and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield from ((name, str(below.value.value)) for name in names)


def _assigned(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    if isinstance(statement, ast.Assign):
        names = [each.elts if isinstance(each, ast.Tuple) else [each] for each in statement.targets]
        return [each.id for some in names for each in some if isinstance(each, ast.Name)]
    return []


def _sources() -> list[Path]:
    return sorted(
        path
        for package in SHIPPING
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts
    )


# --------------------------------------------------------------------------- metrics and reasons


def _metrics() -> str:
    text = exposition(lambda: Scrape(full(), LOCAL, {"health": 3}, {"malformed": 2}, 0))().decode()
    rows = []
    for family in text_string_to_metric_families(text):
        labels = sorted({label for sample in family.samples for label in sample.labels})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append((f"`{name}`", family.type, shown, family.documentation))
    lead = (
        "At `/metrics` of each LB, for Prometheus. Each LB tells what it sees itself. A metric"
        " whose source has not spoken yet is absent, not 0. Alert rules and a Grafana dashboard for"
        " these names lie in `conf/prometheus/`."
    )
    return _page("Metrics", lead, _table(("metric", "type", "labels", "meaning"), sorted(rows)))


def _reasons() -> str:
    kinds = (
        ("pass_", "passed", "not ours: the kernel gets the packet untouched"),
        ("slow_", "passed on to TC", "ours, but XDP cannot finish it: TC does the same work"),
        ("drop_", "dropped", "the packet ends here"),
        ("", "sent on, or answered", "to the node, back to the client, or answered from here"),
    )
    rows: dict[str, list[tuple[str, ...]]] = {kind: [] for _, kind, _ in kinds}
    for name, text in reasons().items():
        if not text.startswith("(none"):
            kind = next(kind for prefix, kind, _ in kinds if name.startswith(prefix))
            rows[kind].append((f"`{name}`", text))
    parts = [
        f"## {kind.capitalize()}\n\n{about.capitalize()}.\n\n"
        + _table(("reason", "meaning"), rows[kind])
        for _, kind, about in kinds
    ]
    lead = (
        "Each packet that a program sees counts exactly one reason: in `gale status`, in the"
        " console and in `gale_verdicts_total{hook,reason}`."
    )
    return _page("Reasons", lead, *parts)


# --------------------------------------------------------------------------- keys


def keys_of(
    model: type[BaseModel], table: str = "", marks: tuple[Any, ...] = ()
) -> Iterator[tuple[str, str, Any, tuple[Any, ...]]]:
    """Every key: its table as the file writes it, its name there, pydantic's field, and the marks
    that it and its table have.
    """
    for name, field in model.model_fields.items():
        marked = (*marks, *field.metadata)
        key = field.alias or name
        inner = _model_within(field.annotation)
        if inner is None or inner.__name__ == "Endpoint":
            yield table, key, field, marked
        elif inner.__name__ == "Check":
            for _, part, each, all_marks in keys_of(inner, "", marked):
                yield table, f"{key}.{part}", each, all_marks
        else:
            listed = str(field.annotation).startswith("tuple")
            yield from keys_of(inner, f"[[{key}]]" if listed else f"[{key}]", marked)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _keys() -> str:
    parts = []
    for name, (model, file) in FILES.items():
        parts.append(f"## {name}\n")
        comments = comments_of(file.read_text())
        tables: dict[str, list[tuple[str, ...]]] = {}
        for table, key, field, marks in keys_of(model):
            restart = (each.when for each in marks if isinstance(each, NeedsRestart))
            alike = (each.otherwise for each in marks if isinstance(each, ClusterWide))
            meaning = comments.get((table, key.split(".")[0]), "")
            meaning = SAID_HERE.get((name, table, key), meaning)
            default = _default(field)
            if table != "[local]":
                default = FILLED_IN.get(key, default)
            takes = expected_of(field)
            row = f"`{key}`", default, takes, next(restart, ""), next(alike, ""), meaning
            tables.setdefault(table, []).append(row)
        head = ("key", "default", "takes", "restart", "on all LBs", "meaning")
        parts += [f"### `{table}`\n\n{_table(head, rows)}" for table, rows in tables.items()]
    lead = (
        "Every key of both files. *restart*: a running process keeps the old value until it is"
        " started again; all others are taken up by `gale reload`. *on all LBs*: where the files of"
        " a cluster are to say the same. *alike*: the operator sees to it; *compared*: LBs tell one"
        " another, and `enforce_single_configuration` says what becomes of it; *staged*: a new"
        " value is in force once all have read it; *or refused*: an LB that differs is not spoken"
        " to. `gale check FILE` says what is wrong with a file, and where."
    )
    return _page("Configuration keys", lead, *parts)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "the host's name"
    value = field.default
    if value is None or value == ():
        return "none"
    if field.alias and _is_duration(field):
        return f'`"{duration_text(value)}"`'
    if isinstance(value, int) and "percentage" in _refusal(field, [[]]):
        return f'`"{value}%"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _is_duration(field: Any) -> bool:
    return 'such as "250ms"' in _refusal(field, [])


def _refusal(field: Any, value: Any) -> str:
    """What is said of a wrong value; empty: it is none."""
    annotated: Any = field.annotation
    for each in field.metadata:
        annotated = Annotated[annotated, each]
    try:
        TypeAdapter(annotated).validate_python(value)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return ""


def expected_of(field: Any) -> str:
    """What a key takes, in the words of its own refusal."""
    said = _refusal(field, "99999999h") if _is_duration(field) else _refusal(field, [[]])
    return said.rpartition("expected ")[2] if "expected " in said else "a list"


def comments_of(text: str) -> dict[tuple[str, str], str]:
    """By table and key: what the shipped file's comments say of it, beside it or above."""
    found: dict[tuple[str, str], str] = {}
    table = ""
    for paragraph in text.split("\n\n"):
        above: list[str] = []
        beside: tuple[str, str] | None = None
        is_above_done = False
        for line in paragraph.splitlines():
            bare = re.sub(r"^(# ?)+", "", line)
            if re.fullmatch(r"\[+[\w.]+\]+", bare):
                table = bare
            elif assigned := re.match(r"(\w+) = ", bare):
                key = table, assigned[1]
                comment = bare.partition("  # ")[2].strip()
                found[key] = comment or " ".join(above)
                beside, is_above_done = (key if comment else None), True
            elif beside is not None and re.match(r"#\s+#\s", line):
                found[beside] += " " + line.lstrip("# ")
            elif line.startswith("#"):
                above = [bare] if is_above_done else [*above, bare]
                is_above_done = False
    return found


# --------------------------------------------------------------------------- ports, times, limits


def _ports() -> str:
    lb, node = LbConfig.model_fields, NodeConfig.model_fields
    local = _model_within(lb["local"].annotation)
    agent = _model_within(node["local"].annotation)
    assert local is not None
    assert agent is not None
    ports = {name: str(field.default) for name, field in local.model_fields.items()}
    rows = [
        (f"tcp {ports['node_port']}", "LB", "private interface", "nodes", "`local.node_port`"),
        (
            f"tcp {ports['api_port']}",
            "LB",
            "loopback, private",
            "operators, Prometheus",
            "`local.api_port`",
        ),
        (
            "tcp, as listed",
            "LB",
            "the address in the list",
            "the other LBs",
            "`load_balancer_quorum.addresses`, `port`",
        ),
        (
            "tcp, the one after",
            "LB",
            "the address in the list",
            "the other LBs, of flows",
            "`load_balancer_quorum.replication_port`",
        ),
        ("as configured", "LB", "as configured", "subscribers to events", "`bus.events`"),
        (
            f"tcp {ports['clients_port']}",
            "LB",
            "public interface",
            "clients of the default service",
            "`local.clients_port`, or `[[services]] port`",
        ),
        (
            f"tcp {agent.model_fields['api_port'].default}",
            "node",
            "loopback, private",
            "operators",
            "`local.api_port`",
        ),
        (
            "as the service says",
            "node",
            "private",
            "the LBs, with clients' packets",
            "`[[services]] node_port`",
        ),
    ]
    lead = (
        "What has to be let through between the machines. Gale opens nothing on the public"
        " interface: clients' packets are taken by the programs before the kernel looks for a"
        " socket."
    )
    head = ("port", "on", "where", "who comes", "key")
    return _page("Ports", lead, _table(head, rows))


def _timeouts() -> str:
    rows = [
        (f"`{table} {key}`", _default(field), f"key of {name}: {expected_of(field)}")
        for name, (model, _) in FILES.items()
        for table, key, field, _ in keys_of(model)
        if field.alias and _is_duration(field)
    ]
    keys = "## That can be set\n\n" + _table(("key", "default", "takes"), rows)
    lead = "How long things take and last."
    return _constants("Timeouts", lead, re.compile(r"_(MS|S)$"), keys)


def _constants(title: str, lead: str, wanted: re.Pattern[str], *more: str) -> str:
    """The constants of all modules whose names are wanted, with the words below them."""
    parts = []
    for path in _sources():
        body = ast.parse(path.read_text()).body
        words = dict(_attribute_words(body))
        rows = [
            (f"`{name}`", value, words.get(name, ""))
            for statement in body
            for name, value in _values(statement)
            if wanted.search(name) and not name.startswith("_")
        ]
        if rows:
            module = path.relative_to(ROOT).with_suffix("")
            parts.append(
                f"### {'.'.join(module.parts)}\n\n{_table(('name', 'value', 'meaning'), rows)}"
            )
    return _page(title, lead, *more, "## That stand in the code\n", *parts)


def _values(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """Names and values of an assignment of numbers, several at once too."""
    value = getattr(statement, "value", None)
    names = _assigned(statement)
    if value is None or not names:
        return
    values = value.elts if isinstance(value, ast.Tuple) and len(names) > 1 else [value]
    for name, each in zip(names, values, strict=False):
        text = ast.unparse(each)
        if re.fullmatch(r"[\d_.*+/() -]+", text):
            number = eval(text)
            yield name, f"{number:,}" if isinstance(number, int) else f"{number:g}"


if __name__ == "__main__":
    main()
