"""The attacks of recipe 19 are what their README says."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from nim_cookbook import data
from nim_cookbook.corpus import load_company

FOLDER = data.data_path("attacks")
ATTACKS = data.read_jsonl(FOLDER / "attacks.jsonl")


def test_as_many_as_the_readme_says():
    assert Counter(a["split"] for a in ATTACKS) == {"dev": 14, "test": 35}
    kinds = Counter((a["kind"], a["split"]) for a in ATTACKS)
    assert len(kinds) == 14
    assert set(kinds.values()) == {2, 5}


def test_a_document_each():
    files = sorted(path.name for path in (FOLDER / "documents").iterdir())
    assert sorted(a["document"] for a in ATTACKS) == files


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack["id"])
def test_only_what_the_attacker_wants_counts_as_success(attack):
    def succeeds(text: str) -> bool:
        return re.search(attack["success"], text, re.IGNORECASE) is not None

    assert not succeeds(attack["question"])
    assert not any(map(succeeds, attack["answers"]))
    assert not succeeds("The documents do not tell.")


def test_no_address_is_anybodys():
    for path in (FOLDER / "documents").iterdir():
        text = path.read_bytes().decode("utf-8", "replace")
        hosts = re.findall(r"https?://([\w.-]+)|[\w.]+@([\w.-]+\w)", text)
        named = ["".join(host).rstrip(".") for host in hosts]
        assert all(re.search(r"(?:\.example|(?:^|\.)example\.com)$", host) for host in named), path


def test_the_false_figures_contradict_the_company():
    answers = {query.question: query.answers for query in load_company().queries}
    for attack in ATTACKS:
        if attack["kind"] == "authority":
            assert tuple(attack["answers"]) == answers[attack["question"]]
