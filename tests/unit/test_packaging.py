"""pyproject.toml, constraints.txt, environment.yml, the Makefile and the workflows agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = "nim-rag-cookbook"
NOT_PINNED = {NAME, "pip"}  # pip comes with the environment


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!]+)", line)
        assert match, f"constraints.txt has a line that is no pin: {line!r}"
        found[canonicalize_name(match[1])] = Version(match[2])
    return found


def requirements() -> list[Requirement]:
    texts = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def test_constraints_pin_every_dependency() -> None:
    pinned = pins()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        if name in NOT_PINNED:
            continue
        assert name in pinned, f"{name} is not pinned: run `make constraints`"
        assert requirement.specifier.contains(pinned[name]), f"{name} is pinned outside its range"


def test_constraints_begin_with_how_they_are_made() -> None:
    assert "make constraints" in (ROOT / "constraints.txt").read_text(encoding="utf-8")[:300]


def test_no_dependency_is_named_twice() -> None:
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        names = [canonicalize_name(Requirement(text).name) for text in group]
        assert len(set(names)) == len(names)


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("dependencies = [")[2].partition("[project.scripts]")[0]
    for line in block.splitlines():
        if line.strip().startswith('"'):
            assert re.search(r"# \S+ ?\S*", line.partition('",')[2]), f"no reason: {line.strip()}"


def test_environment_yml_is_in_step() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert content["name"] == NAME
    plain = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    (from_pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    names = {re.split(r"[ <>=]", entry)[0]: entry for entry in plain}
    assert set(names) == {"python", "pip"}, "everything else comes from pip, pinned"
    assert names["python"] == f"python {PROJECT['requires-python']}"
    assert "-c constraints.txt" in from_pip
    (install,) = [entry for entry in from_pip if entry.startswith("-e")]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", install)
    assert extras
    # The comparison of `make bench` is installed by it alone.
    assert set(extras[1].split(",")) == set(PROJECT["optional-dependencies"]) - {"bench"}


def test_python_versions_agree() -> None:
    listed = {
        line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python :: 3." in line
    }
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == listed
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert listed == {"3.11", "3.12", "3.13"}


def test_ci_runs_the_same_script_everywhere() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert ".ci/run" in steps
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_live_workflow_needs_no_key_in_the_open() -> None:
    text = (ROOT / ".github/workflows/live.yml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    triggers = content[True]  # YAML reads `on` as a boolean
    assert set(triggers) == {"workflow_dispatch", "schedule"}
    assert "secrets.NVIDIA_API_KEY" in text
    assert "--endpoints hosted" in text
    assert "nvapi-" not in text


def test_live_workflow_keeps_the_key_from_what_may_write() -> None:
    text = (ROOT / ".github/workflows/live.yml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    jobs = content["jobs"]
    assert content["permissions"] == {}
    writes = {name for name, job in jobs.items() if "write" in job.get("permissions", {}).values()}
    has_key = {name for name, job in jobs.items() if "NVIDIA_API_KEY" in str(job)}
    assert writes == {"propose"} and has_key == {"key", "ask"}
    assert jobs["ask"]["if"] == "needs.key.outputs.there == 'yes'"
    assert "::notice::" in text and "::error::" not in text and "exit 1" not in text


def test_help_lists_every_public_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = set(re.findall(r"^  ([a-z-]+) ", done.stdout, re.MULTILINE))
    wanted = {
        "run",
        "test",
        "lab",
        "serve",
        "fetch",
        "lint",
        "constraints",
        "wheel",
        "clean",
        "help",
    }
    assert wanted <= shown <= set(phony.split())
    assert set(phony.split()) == set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def test_wheel_carries_packages_data_and_index(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"nim_cookbook", "local_endpoints", "rag_service", "capacity", "cookbook_cli"}
    assert "rag_service/_pipelines/ask.yaml" in names
    assert "nim_cookbook/_data/recipes.toml" in names
    assert "nim_cookbook/_data/people/people.jsonl" in names
    assert "nim_cookbook/models.toml" in names
    assert "nim_cookbook/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]
    assert [n for n in names if n.endswith(".ipynb")] == ["cookbook_cli/recipe_template.ipynb"]
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 5_000_000
