"""What the alert rules make of what real LBs say: their `/metrics`, given to promtool.

A scrape of all LBs is taken for what they say for two hours: by then each alert that it is a reason
for fires, however long it waits first. What is counted is taken at two moments, and goes on as fast
as it did between them.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from e2e.hosts import LabHosts

RULES = Path(__file__).resolve().parent.parent / "conf" / "prometheus" / "gale.rules.yml"
EVERY_S = 15
SAMPLES = 480
LOOKED_AT = "118m"
OF_THE_MACHINE = ("GaleReplicationSlow", "GaleBusDropped")
"""They may always fire where all LBs share a machine that is busy."""


@dataclass(frozen=True, slots=True)
class Scraped:
    """All series of all LBs at one moment, by their names in PromQL."""

    at_s: float
    values: dict[str, float]

    def sum(self, begin: str) -> float:
        """Of all whose names begin so."""
        return sum(value for name, value in self.values.items() if name.startswith(begin))

    def differs(self, begin: str) -> bool:
        """Whether not all LBs say the same here."""
        return len({value for name, value in self.values.items() if name.startswith(begin)}) > 1


def scrape(hosts: LabHosts) -> Scraped:
    """As Prometheus does it: who does not answer is not up."""
    values: dict[str, float] = {}
    for lb in hosts.lbs:
        target = f'job="gale",instance="{lb}:5555"'
        try:
            text = hosts.lab.metrics(lb)
        except OSError:
            text = ""
        values[f"up{{{target}}}"] = float(bool(text))
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = [target, *(f'{key}="{value}"' for key, value in sample.labels.items())]
                if math.isfinite(sample.value):
                    values[f"{sample.name}{{{','.join(labels)}}}"] = sample.value
    return Scraped(time.monotonic(), values)


def check(
    last: Scraped,
    fire: Collection[str],
    *,
    maybe: Collection[str] = (),
    first: Scraped | None = None,
) -> None:
    """That these alerts fire and no others, but perhaps `maybe`; `first`: a scrape before."""
    may = "|".join((*fire, *maybe, *OF_THE_MACHINE))
    firing = 'ALERTS{alertstate="firing"'
    cases = [
        # Not their number: promtool says what it finds, so that their names are seen.
        {"expr": f'{firing},alertname!~"{may}"}}', "eval_time": LOOKED_AT},
        *(
            {
                "expr": f'count({firing},alertname="{alert}"}}) > bool 0',
                "eval_time": LOOKED_AT,
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
            for alert in fire
        ),
    ]
    series = [
        {"series": name, "values": f"{value!r}+{_growth(name, last, first)!r}x{SAMPLES}"}
        for name, value in last.values.items()
    ]
    test = {"interval": f"{EVERY_S}s", "input_series": series, "promql_expr_test": cases}
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"rule_files": [str(RULES)], "tests": [test]}, file)
        file.flush()
        ran = subprocess.run(
            ["promtool", "test", "rules", file.name], capture_output=True, text=True, check=False
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _growth(name: str, last: Scraped, first: Scraped | None) -> float:
    """From one sample to the next."""
    if first is None or "_total{" not in name:
        return 0.0
    # What has never happened is not there.
    grown = last.values[name] - first.values.get(name, 0.0)
    return max(grown, 0.0) * EVERY_S / (last.at_s - first.at_s)
