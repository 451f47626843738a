#!/usr/bin/env python3
"""Writes measured numbers into README files, between the marks that say where.

  table.py --results FILE [--results FILE ...] --lab TOML [--lab TOML ...] [--peers a,b] [--command TEXT] README ...
      the lab's results.jsonl, between <!-- lab:begin --> and <!-- lab:end -->
  table.py --icount FILE README ...
      icount.baseline, between <!-- icount:begin --> and <!-- icount:end -->

Without a README the text goes to standard output. --lab names the lab's TOML files, for titles, metrics and what
the peers are; a later file adds to an earlier one. Only Python's standard library is used.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
import tomllib
from pathlib import Path

OURS = "tollgate"
MIB_100 = 100 * 2**20


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", action="append", default=[], type=Path)
    arguments.add_argument("--icount", type=Path)
    arguments.add_argument("--lab", action="append", default=[], type=Path)
    arguments.add_argument("--peers", default="", help="columns, in this order; default: as they were measured")
    arguments.add_argument("--command", default="", help="the command that measured, to be shown")
    arguments.add_argument("--machine", default="", help="the machine, if it isn't this one")
    arguments.add_argument("readme", nargs="*", type=Path)
    given = arguments.parse_args()
    if bool(given.results) == bool(given.icount):
        arguments.error("either --results or --icount is needed")
    if given.results and not given.lab:
        arguments.error("--results needs --lab, to know what was measured")

    if given.icount:
        mark, text = "icount", icount_table(given.icount)
    else:
        runs = [json.loads(line) for path in given.results for line in path.read_text().splitlines() if line.strip()]
        if not runs:
            sys.exit("table.py: the results are empty")
        mark = "lab"
        text = lab_table(runs, read_lab(given.lab), [p for p in given.peers.split(",") if p])
        text += "\n" + provenance(runs, given.machine or this_machine(), given.command)
    if not given.readme:
        print(text)
    for readme in given.readme:
        replace(readme, mark, text)


def replace(readme, mark, text):
    """Puts `text` between the two marks of a file."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    old = readme.read_text()
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        sys.exit(f"table.py: {readme} doesn't have {begin} and {end} once each, in this order")
    before, rest = old.split(begin)
    _, after = rest.split(end)
    readme.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


# ---- the lab


def read_lab(paths):
    """The peers and loads of the lab's TOML files, as they follow each other."""
    lab = {"peer": {}, "load": {}}
    for path in paths:
        # As bench.py reads it; what @HERE@ stands for makes no difference here.
        for kind, entries in tomllib.loads(path.read_text()).items():
            lab.setdefault(kind, {}).update(entries)
    return lab


def lab_table(runs, lab, wanted):
    """One row for each load, one column for each peer."""
    groups = {}
    for run in runs:
        groups.setdefault((run["load"], run["peer"]), []).append(run)
    seen = {key: list(dict.fromkeys(run[key] for run in runs)) for key in ("peer", "load")}
    peers = [peer for peer in wanted or seen["peer"] if peer in seen["peer"]]
    unknown = [load for load in seen["load"] if load not in lab["load"]]
    if unknown:
        sys.exit(f"table.py: the lab's files have no load {', '.join(unknown)}")
    loads = [load for load in lab["load"] if load in seen["load"]]

    lines = [
        "| load | measured | " + " | ".join(peers) + " |",
        "|---|---|" + "---:|" * len(peers),
    ]
    with_errors = False
    for load in loads:
        about = lab["load"][load]
        metric = Metric.of(about)
        cells = {peer: Cell(metric, groups.get((load, peer), [])) for peer in peers}
        rivals = [cell for peer, cell in cells.items() if not peer.startswith(OURS) and opens_tls(peer, lab) and cell.counts()]
        row = []
        for peer, cell in cells.items():
            with_errors |= cell.errors > 0
            best = peer == OURS and cell.counts() and rivals and all(cell.beats(rival) for rival in rivals)
            row.append(f"**{cell.text()}**" if best else cell.text())
        title = re.sub(r" \([^)]*\)", "", about["title"]).split(": ")[0]
        lines.append(f"| {title} | {metric.unit} | " + " | ".join(row) + " |")

    lines += ["", "Less is better everywhere. **Bold**: Tollgate is the best of the proxies"
              + (" (`fwd`, which copies bytes and opens nothing, is the floor and not one of them)" if "fwd" in peers else "") + "."]
    if with_errors:
        lines.append("†: some requests failed.")
    known = [(peer, lab["peer"][peer]["about"]) for peer in peers if lab["peer"].get(peer, {}).get("about")]
    if known:
        lines += [""] + [f"* `{peer}`: {about}" for peer, about in known]
    return "\n".join(lines) + "\n"


def opens_tls(peer, lab):
    """Whether a peer does what Tollgate does, and isn't a floor to compare with."""
    return lab["peer"].get(peer, {}).get("kind", "") not in ("direct", "tunnel") and peer not in ("direct", "fwd")


class Metric:
    """What is shown for a load: one number of a run, or a median and a tail."""

    def __init__(self, unit, *values):
        self.unit, self.values = unit, values

    @staticmethod
    def of(load):
        kind, args = load.get("metric", "rps"), load["args"]
        if "--mode idle" in args:
            return Metric("KiB per connection", lambda r: (r["rss"] - r["rss0"]) / r["n"])
        if kind == "rss":
            return Metric("resident MiB", lambda r: r["rss"] / 1024)
        if kind == "mbps":
            return Metric("CPU ms per 100 MiB", lambda r: 1e3 * r["cpu"] / (r["bytes"] / MIB_100))
        if "--mode sse" in args:
            return Metric("delay of an event, ms, p50 / p99", lambda r: r["delay"]["p50"], lambda r: r["delay"]["p99"])
        if kind in ("p50", "delay"):
            return Metric("latency, ms, p50 / p99", lambda r: r["lat"]["p50"], lambda r: r["lat"]["p99"])
        return Metric("CPU µs per request", lambda r: 1e6 * r["cpu"] / r["n"])


class Cell:
    """What a peer did under a load: medians over the rounds."""

    def __init__(self, metric, runs):
        self.runs = len(runs)
        self.errors = sum((run.get("errs") or 0) + (run.get("non2xx") or 0) for run in runs)
        good = [run for run in runs if run.get("n")]
        self.values = []
        for value in metric.values:
            try:
                self.values.append(statistics.median(value(run) for run in good))
            except (KeyError, TypeError, ZeroDivisionError, statistics.StatisticsError):
                self.values = []
                break

    def counts(self):
        """Whether it is a result to compare with."""
        return bool(self.values) and not self.errors

    def beats(self, other):
        # As shown: a difference that rounds away is none.
        return all(float(number(a)) <= float(number(b)) for a, b in zip(self.values, other.values))

    def text(self):
        if not self.values:
            return "fails" if self.runs else "–"
        return " / ".join(number(value) for value in self.values) + (" †" if self.errors else "")


def number(value):
    """Three figures, and no more than two behind the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def provenance(runs, machine, command):
    """Where, when and how it was measured."""
    rounds = 1 + max(run.get("round") or 0 for run in runs)
    day = time.strftime("%Y-%m-%d", time.gmtime(max(run.get("t") or 0 for run in runs)))
    other = max((run.get("foreign") or 0) + (run.get("steal") or 0) for run in runs)
    line = f"{machine}, {day}; median of {rounds} round{'s' if rounds > 1 else ''}; other work took at most {other:.0f} % of the machine."
    return line + (f" Command: `{command}`" if command else "") + "\n"


def this_machine():
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    processor = found[1].strip() if found else platform.machine()
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{os.cpu_count()} × {processor}, {platform.system()} {kernel}"


# ---- counted instructions


def icount_table(path):
    rows = [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    lines = ["| case | instructions |", "|---|---:|"]
    lines += [f"| `{name}` | {int(count):,} |" for name, count in rows]
    return "\n".join(lines) + "\n"


main()
