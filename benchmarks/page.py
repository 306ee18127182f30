"""One page on load, speed and growth; what `make bench` runs.

    python benchmarks/page.py [--quick | --full] [--parts endpoints serving growth] [--out FOLDER]

Runs each part as a command of its own, which can be run alone as well, and writes
`benchmarks/report/index.html` with a table and a plot for each. `--quick` takes 2 to 8 minutes
and goes up to 10,000 chunks, the default up to 100,000, and `--full` up to 1,000,000. Everything is
on loopback. A part that fails is said on the page, and in the exit status.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from timing import say

from nim_cookbook.pictures import BLUE, GREY, ORANGE, STYLES, Picture, figure_of, finished

HERE = Path(__file__).parent
#: Arguments of each part by size. `tiny` proves that the page is made, and measures nothing.
SIZES: dict[str, dict[str, str]] = {
    "tiny": {
        "endpoints": "--rounds 1 --requests 2 --clients 1 2 --chat-clients 1 2",
        "serving": "--rounds 1 --requests 8 --clients 4 --wait 0.05",
        "growth": "--sizes 200 500 --queries 10",
    },
    "quick": {
        "endpoints": "--rounds 2 --requests 8 --clients 1 8 --chat-clients 1 4",
        "serving": "--rounds 2 --requests 600",
        "growth": "--sizes 1000 10000 --queries 100",
    },
    "default": {
        "endpoints": "--rounds 5 --requests 32",
        "serving": "--rounds 5 --requests 2000",
        "growth": "--sizes 1000 10000 100000",
    },
    "full": {
        "endpoints": "--rounds 7 --requests 64",
        "serving": "--rounds 7 --requests 4000",
        "growth": "--sizes 1000 10000 100000 1000000",
    },
}
TITLES = {
    "endpoints": "Endpoints",
    "serving": "Query service",
    "growth": "Growth",
}
STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.2rem .6rem;border:1px solid #ccc}
td{text-align:right}td:first-child,th{text-align:left}.missed{background:#fde0d0}"""

Row = Mapping[str, Any]


def run(part: str, arguments: str, out: Path) -> dict[str, Any]:
    """Run a part and show what it says; return its results, or why it failed."""
    file = out / f"{part}.json"
    command = [sys.executable, str(HERE / f"{part}.py"), "--json", str(file)]
    last = "it said nothing"
    with subprocess.Popen(
        [*command, *arguments.split()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode:
        return {"failed": f"exit status {process.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return answer


def machine() -> dict[str, str]:
    """Return what a reader needs to know to compare figures."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text("utf-8").splitlines()
        cpu = next((ln.partition(": ")[2] for ln in lines if ln.startswith("model name")), cpu)
    names = ("onnxruntime", "xllamacpp", "hayhooks", "haystack-ai", "qdrant-edge-py")
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    return {
        "processor": f"{cpu}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before": f"{load} (1, 5, 15 minutes); the figures want a machine at rest",
        "versions": ", ".join(f"{name} {version(name)}" for name in names),
    }


# ---------------------------------------------------------------------------------------- page


def cell(value: object) -> str:
    """Return a value as text; a spread as its median with minimum and maximum."""
    if isinstance(value, dict):
        return f"{value['median']:g} [{value['min']:g}, {value['max']:g}]"
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def verdict(row: Row) -> str:
    """Say whether a ratio reaches its target; nothing where there is none."""
    if row.get("target") is None or "ratio" not in row:
        return ""
    return "yes" if row["ratio"]["median"] >= row["target"] else "no"


def table(rows: Sequence[Row]) -> str:
    """Return rows as an HTML table; its columns are those of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    ratios = "ratio" in columns or "target" in columns
    head = "".join(f"<th>{escape(name)}</th>" for name in columns) + "<th>met</th>" * ratios
    lines = []
    for row in rows:
        met = verdict(row)
        cells = "".join(f"<td>{escape(cell(row.get(name, '')))}</td>" for name in columns)
        mark = ' class="missed"' if met == "no" else ""
        lines.append(f"<tr{mark}>{cells}{f'<td>{met}</td>' * ratios}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def ratio_plot(title: str, rows: Sequence[Row]) -> Picture:
    """Draw each ratio with its spread, and the target as a line across it."""
    shown = [row for row in rows if "ratio" in row]
    figure, axes = figure_of((9, 1.2 + 0.32 * len(shown)))
    names = []
    for place, row in enumerate(shown):
        ratio, missed = row["ratio"], verdict(row) == "no"
        middle = ratio["median"]
        axes.errorbar(
            middle, place, xerr=[[middle - ratio["min"]], [ratio["max"] - middle]], capsize=3,
            fmt="s" if missed else "o", color=ORANGE if missed else BLUE,
        )  # fmt: skip
        if row["target"] is not None:
            axes.plot([row["target"]] * 2, [place - 0.4, place + 0.4], color="black", lw=2)
        where = [str(row[name]) for name in ("pipeline", "texts") if name in row]
        names.append(f"{' '.join(where)} {row['clients']} clients, / {row['against']}".strip())
    axes.axvline(1, color=GREY, lw=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(f"{title}\nratio of rates; black: target; squares miss it", fontsize=10)
    pairs = zip(names, shown, strict=True)
    said = "; ".join(f"{name}: {cell(row['ratio'])}" for name, row in pairs)
    return finished(figure, f"Dots with spreads. {title}: {said}.")


def growth_plot(title: str, rows: Sequence[Row]) -> Picture:
    """Draw build time, memory, latency and recall by size, a line for each store."""
    panels = ("build, s", "memory, MB", "p95, ms", "recall@10")
    figure, axes = figure_of((12, 3.6), panels=len(panels), shared=False)
    stores = list(dict.fromkeys(row["store"] for row in rows))
    for store, (colour, marker) in zip(stores, STYLES, strict=False):
        mine = [row for row in rows if row["store"] == store]
        for panel, name in zip(axes, panels, strict=True):
            sizes, values = [row["chunks"] for row in mine], [row[name] for row in mine]
            panel.plot(sizes, values, color=colour, marker=marker, label=store)
    for panel, name in zip(axes, panels, strict=True):
        panel.set(xscale="log", xlabel="chunks", title=name)
        if name.startswith("recall"):
            panel.set_ylim(0, 1.05)
        else:
            panel.set_yscale("log")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    said = "; ".join(
        f"{row['store']}, {row['chunks']:,} chunks: "
        + ", ".join(f"{name} {row[name]}" for name in panels)
        for row in rows
    )
    return finished(figure, f"Lines. {title}: {said}.")


PLOTS = {"ratios": ratio_plot, "growth": growth_plot}


def shown(part: str, arguments: str, found: Row, out: Path) -> str:
    """Return a part of the page; its pictures are written beside it."""
    command = f"python benchmarks/{part}.py --json {arguments}"
    text = [f"<h2>{TITLES[part]}</h2><p><code>{escape(command)}</code></p>"]
    if "failed" in found:
        return f"{text[0]}<p class='missed'>Failed: {escape(found['failed'])}</p>"
    if weights := found.get("weights"):
        text.append(f"<p>{escape('; '.join(f'{k}: {v}' for k, v in weights.items()))}</p>")
    for number, section in enumerate(found["sections"]):
        text.append(f"<h3>{escape(section['title'])}</h3>")
        text += [f"<p>{escape(sentence)}</p>" for sentence in section.get("text", ())]
        if section["rows"]:
            text.append(table(section["rows"]))
        if any("ratio" in row or "chunks" in row for row in section["rows"]) and "plot" in section:
            picture = PLOTS[section["plot"]](section["title"], section["rows"])
            name = f"{part}-{number}.png"
            (out / name).write_bytes(picture.png)
            text.append(f'<img src="{name}" alt="{escape(picture.alt)}" width="{picture.width}">')
    return "\n".join(text)


def main() -> int:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    for name in ("quick", "full", "tiny"):
        hidden = argparse.SUPPRESS if name == "tiny" else None
        size.add_argument(
            f"--{name}", dest="size", action="store_const", const=name, default="default",
            help=hidden,
        )  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--out", type=Path, default=HERE / "report")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = datetime.datetime.now(datetime.UTC)
    facts = machine()
    results: dict[str, dict[str, Any]] = {}
    for part in options.parts:
        say(f"{part} {SIZES[options.size][part]}")
        results[part] = run(part, SIZES[options.size][part], options.out)
        if "failed" in results[part]:
            say(f"  failed: {results[part]['failed']}")
    took = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
    facts |= {
        "command": " ".join(["python", "benchmarks/page.py", *sys.argv[1:]]),
        "date": f"{began:%Y-%m-%d %H:%M} UTC, {took:.0f} s",
    }
    head = "".join(
        f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in facts.items()
    )
    parts = [
        shown(part, SIZES[options.size][part], found, options.out)
        for part, found in results.items()
    ]
    introduction = (
        "Each ratio is of two rates measured one after the other in the same round; every other "
        "round goes backwards. A cell shows the median, and minimum and maximum in brackets. What "
        "sends the requests is on the same machine, and takes 0.1 to 0.2 ms of processor for each."
    )
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Load and speed</title>"
        f"<style>{STYLE}</style><h1>Load and speed</h1><p>{introduction}</p>"
        f"<table>{head}</table>{''.join(parts)}</html>\n"
    )
    (options.out / "index.html").write_text(page, encoding="utf-8")
    print(options.out / "index.html")
    return int(any("failed" in found for found in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
