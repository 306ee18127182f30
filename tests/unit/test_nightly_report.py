"""tools/nightly_report.py: the nightly's issue says what failed, and green means that all ran."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RUN = "https://github.com/someone/cookbook/actions/runs/7"
PARTS = ("pinned", "newest", "main", "links")


def recipe(number: str, error: str = "", missed: tuple[str, ...] = ()) -> dict[str, object]:
    failed = bool(error or missed)
    return {
        "number": number,
        "title": f"Recipe {number}",
        "result": "failed" if failed else "passed",
        "failed_cell": 7 if error else None,
        "error": error,
        "missed": missed,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results of a green night."""
    for name in PARTS:
        folder = tmp_path / "results" / f"nightly-{name}"
        folder.mkdir(parents=True)
        ids = ("links",) if name == "links" else ("install", "recipes", "tests")
        write(folder / "steps.json", {step: {"outcome": "success"} for step in ids})
        if name != "links":
            write(folder / "run.json", {"recipes": [recipe("00"), recipe("01")]})
            write(folder / "packages.json", [{"name": "uv", "version": "9.9"}])
            (folder / "tests.log").write_text("312 passed\n", "utf-8")
    return tmp_path / "results"


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), "utf-8")


def report(results: Path) -> tuple[str, str]:
    """Return the verdict and the text of the issue."""
    body = results.parent / "body.md"
    command = [sys.executable, "-S", "-E", str(ROOT / "tools" / "nightly_report.py")]
    done = subprocess.run(
        [*command, str(results), "--run", RUN, "--output", str(body)],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip(), body.read_text("utf-8")


def test_green(results: Path) -> None:
    verdict, text = report(results)
    assert verdict == "passed"
    assert text.startswith(f"All is green.\n\n{RUN}\n")
    assert "| `00 Recipe 00` | `passed` |  |" in text
    assert "Package" not in text  # no version differs


def test_a_failed_recipe_has_its_first_error(results: Path) -> None:
    folder = results / "nightly-newest"
    error = "TypeError: unexpected | `top_k`\nsecond line for @someone"
    rows = [recipe("00", error), recipe("01", missed=("nDCG is 0.1, the least is 0.5", "more"))]
    write(folder / "run.json", {"recipes": rows})
    write(
        folder / "steps.json", {"recipes": {"outcome": "failure"}, "tests": {"outcome": "success"}}
    )
    verdict, text = report(results)
    assert verdict == "failed"
    assert text.startswith("Failed: newest.\n")
    assert "## newest: failed\n\nFailed: recipes.\n" in text
    cell = (
        "`TypeError: unexpected \\| 'top_k' second line for @someone`"  # code: nobody is mentioned
    )
    assert f"| `00 Recipe 00` | `failed in cell 7` | {cell} |" in text
    assert "| `01 Recipe 01` | `failed` | `nDCG is 0.1, the least is 0.5` |" in text
    assert "## pinned: passed" in text


def test_failed_tests_and_targets_are_named(results: Path) -> None:
    log = (
        "FAILED tests/unit/test_a.py::test_b[c d] - AssertionError: assert 1 == 2\n"
        "\x1b[31mERROR tests/unit/test_e.py - ImportError: no module\x1b[0m\n"
        "make[1]: *** [Makefile:75: lint] Error 1\n"
        "SKIPPED [1] tests/unit/test_f.py:3: needs a GPU\n"
    )
    folder = results / "nightly-main"
    (folder / "tests.log").write_text(log, "utf-8")
    write(folder / "steps.json", {"tests": {"outcome": "failure"}})
    verdict, text = report(results)
    assert verdict == "failed"
    assert "| `tests/unit/test_a.py::test_b[c d]` | `AssertionError: assert 1 == 2` |" in text
    assert "| `tests/unit/test_e.py` | `ImportError: no module` |" in text
    assert "| `make lint` |  |" in text
    assert "GPU" not in text


def test_versions_that_differ_from_the_tested_ones(results: Path) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    )
    packages = [{"name": name, "version": version} for name, version in pins.items()]
    next(p for p in packages if p["name"] == "haystack-ai")["version"] = "99.1"
    next(p for p in packages if p["name"] == "torch")["version"] += "+cpu"
    packages.append({"name": "Some_New.Package", "version": "1.0"})
    write(results / "nightly-newest" / "packages.json", packages)
    _, text = report(results)
    table = text.partition("| Package | Tested | Tonight |\n|---|---|---|\n")[2].partition("\n\n")[
        0
    ]
    assert table.splitlines() == [
        f"| `haystack-ai` | `{pins['haystack-ai']}` | `99.1` |",
        "| `some-new-package` | `not there` | `1.0` |",
    ]


def test_broken_links_are_listed(results: Path) -> None:
    folder = results / "nightly-links"
    write(folder / "steps.json", {"links": {"outcome": "failure"}})
    (folder / "links.md").write_text(
        "# Summary\n\n| Total | 9 |\n\n### Errors in README.md\n\n* [404] <https://a.example/gone>\n",
        "utf-8",
    )
    verdict, text = report(results)
    assert verdict == "failed"
    assert "| `[404] <https://a.example/gone>` |" in text


@pytest.mark.parametrize("name", PARTS)
def test_a_part_without_results_failed(results: Path, name: str) -> None:
    (results / f"nightly-{name}" / "steps.json").unlink()
    verdict, text = report(results)
    assert verdict == "failed"
    assert f"## {name}: failed\n\nFailed: no result was kept." in text


def test_a_long_report_fits_into_an_issue(results: Path) -> None:
    rows = [recipe("00", "E" * 400) for _ in range(500)]
    write(results / "nightly-main" / "run.json", {"recipes": rows})
    assert len(report(results)[1]) < 65_536


def test_the_workflow_has_these_parts() -> None:
    text = (ROOT / ".github/workflows/nightly.yml").read_text("utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    names = [*jobs["run"]["strategy"]["matrix"]["packages"], "links"]
    assert tuple(names) == PARTS
    assert set(jobs["report"]["needs"]) == set(jobs) - {"report"}
    assert jobs["report"]["permissions"] == {"contents": "read", "issues": "write"}
    assert "continue-on-error" not in text
