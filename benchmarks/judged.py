"""Builds three judged collections in BEIR's layout out of pinned packages.

    python benchmarks/judged.py FOLDER

None of them has anything to do with the company's papers, and each asks in another way:

faq         503 short answers on building in Sweden; a question is answered by its own one only.
            "Swedish Construction FAQ" by Zaragoza AB, CC BY 4.0, the English half.
weaknesses  938 kinds of software weakness, a paragraph each. The questions are reports of real
            vulnerabilities in a sentence, 20 words long on average, and MITRE's analysts said
            which weaknesses each one shows. CWE 4.14, copyright The MITRE Corporation, whose terms
            of use allow this; they are copied into the folder.
docstrings  836 functions and classes of NetworkX (BSD), the prose of their docstrings. The question
            is the summary line, a statement and not a question; it is not in the document.

The first 300 questions in the order of a hash of their text are kept. The wheels come from the
package index, are checked by SHA-256 and read as archives; nothing of them is run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

WHEELS = """\
zaragoza-construction-faq==1.2.1 \
--hash=sha256:716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7
cwe2==3.0.0 --hash=sha256:abef03eb853f5c1851df6af5167bd9fe73a53dddb119fdbc5c3afc7d50b9f55b
networkx==3.6.1 --hash=sha256:d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762
"""
QUESTIONS = 300
FEWEST_WORDS = 12  # of a vulnerability's report; "Buffer overflow using strcpy()" says too little
PROSE = 30  # words of a docstring's prose

#: Documents by id (title, text), and questions with the ids of the documents that answer them.
Built = tuple[dict[str, tuple[str, str]], dict[str, set[str]]]


def faq(wheel: zipfile.ZipFile) -> Built:
    """Return the questions and answers."""
    lines = wheel.read("zaragoza_construction_faq/data/faq-en.jsonl").decode().splitlines()
    records = [json.loads(line) for line in lines]
    answers = {record["id"]: ("", record["a"]) for record in records}
    return answers, {record["q"]: {record["id"]} for record in records}


def weaknesses(wheel: zipfile.ZipFile) -> Built:
    """Return weaknesses, and the vulnerabilities that show them."""
    found = ElementTree.fromstring(wheel.read("cwe2/database_v49/cwec_v4.14.xml"))
    documents: dict[str, tuple[str, str]] = {}
    questions: dict[str, set[str]] = {}
    for weakness in found.iterfind("{*}Weaknesses/{*}Weakness"):
        if weakness.get("Status") == "Deprecated":
            continue
        name = weakness.get("ID", "")
        parts = [weakness.find(f"{{*}}{tag}") for tag in ("Description", "Extended_Description")]
        text = " ".join("".join(part.itertext()) for part in parts if part is not None)
        documents[name] = weakness.get("Name", ""), " ".join(text.split())
        for report in weakness.iterfind(".//{*}Observed_Example/{*}Description"):
            words = "".join(report.itertext()).split()
            if len(words) >= FEWEST_WORDS:
                questions.setdefault(" ".join(words), set()).add(name)
    return documents, questions


def docstrings(wheel: zipfile.ZipFile) -> Built:
    """Return the prose of docstrings, and their summaries."""
    documents: dict[str, tuple[str, str]] = {}
    questions: dict[str, set[str]] = {}
    for file in sorted(wheel.namelist()):
        if not file.endswith(".py") or "/tests/" in file:
            continue
        for text in _docstrings(wheel.read(file).decode()):
            summary, _, rest = text.partition("\n\n")
            prose = " ".join(rest.split())
            if len(prose.split()) >= PROSE and summary not in prose:
                name = f"d{len(documents)}"
                documents[name] = "", prose
                questions.setdefault(" ".join(summary.split()), set()).add(name)
    return documents, questions


def _docstrings(source: str) -> Iterator[str]:
    """Yield each docstring's summary and, of NumPy's sections, the description and the notes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            head, *sections = re.split(r"^(\w[\w ]*)\n[-=]{3,}\n", text, flags=re.MULTILINE)
            pairs = zip(sections[::2], sections[1::2], strict=True)
            kept = [body for title, body in pairs if title == "Notes"]
            lines = "\n".join([head, *kept]).splitlines()
            # Examples that a parser does not see as a section.
            yield "\n".join(line for line in lines if not line.lstrip().startswith((">>>", "...")))


def write(folder: Path, built: Built) -> str:
    """Write a collection in BEIR's layout and return how large it is."""
    documents, questions = built
    order = sorted(questions, key=lambda text: hashlib.sha256(text.encode()).digest())
    asked = {f"q{number}": text for number, text in enumerate(order[:QUESTIONS])}
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _jsonl(
        folder / "corpus.jsonl",
        [{"_id": name, "title": title, "text": text} for name, (title, text) in documents.items()],
    )
    _jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in asked.items()])
    lines = [f"{q}\t{d}\t1\n" for q, text in asked.items() for d in sorted(questions[text])]
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "test.tsv").write_text(header + "".join(lines), encoding="utf-8")
    return f"{folder.name}: {len(documents)} documents, {len(asked)} of {len(order)} questions"


def _jsonl(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> int:
    """Fetch the wheels and write the collections."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        fetched = Path(name)
        (fetched / "wheels.txt").write_text(WHEELS, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        wanted = ["--only-binary=:all:", "--dest", name, "-r", str(fetched / "wheels.txt")]
        if subprocess.run([*pip, *wanted], check=False).returncode:
            return 1  # pip has said why
        wheels = {path.name.split("-")[0]: zipfile.ZipFile(path) for path in fetched.glob("*.whl")}
        print(write(folder / "faq", faq(wheels["zaragoza_construction_faq"])))
        print(write(folder / "weaknesses", weaknesses(wheels["cwe2"])))
        terms = wheels["cwe2"].read("cwe2-3.0.0.dist-info/cwe-tou.LICENSE")
        (folder / "weaknesses" / "LICENSE").write_bytes(terms)
        print(write(folder / "docstrings", docstrings(wheels["networkx"])))
        for wheel in wheels.values():
            wheel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
