"""The workflows: actions by commit, few permissions, a limit for each job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

GITHUB = Path(__file__).resolve().parents[2] / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.y*ml"))
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def content(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return parsed


@each_workflow
def test_actions_are_pinned_by_commit_with_their_version(path: Path) -> None:
    lines = [line.strip(" -") for line in path.read_text("utf-8").splitlines()]
    used = [line for line in lines if line.startswith("uses:")]
    steps = [step for job in content(path)["jobs"].values() for step in job["steps"]]
    assert len(used) == sum("uses" in step for step in steps)
    assert [line for line in used if not PINNED.match(line)] == []


def test_an_action_has_one_version() -> None:
    text = "\n".join(path.read_text("utf-8") for path in WORKFLOWS)
    found = set(re.findall(r"uses: (\S+)@(\S+) # (\S+)", text))
    assert len(found) == len({action for action, _, _ in found})


@each_workflow
def test_permissions_are_declared_and_read_only_by_default(path: Path) -> None:
    assert content(path)["permissions"] in ({}, {"contents": "read"})


@each_workflow
def test_every_job_has_a_limit(path: Path) -> None:
    for name, job in content(path)["jobs"].items():
        assert 0 < job.get("timeout-minutes", 0) <= 240, name


def test_dependabot_keeps_the_actions_current() -> None:
    (entry,) = content(GITHUB / "dependabot.yml")["updates"]
    assert entry["package-ecosystem"] == "github-actions"


def test_platforms_that_never_ran_say_so() -> None:
    workflow = content(GITHUB / "workflows" / "platforms.yml")
    assert "not yet run" in workflow["name"]
    assert set(workflow[True]) == {"workflow_dispatch", "schedule"}  # YAML reads `on` as true
    assert "continue-on-error" not in str(workflow)
