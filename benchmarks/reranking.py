"""Does reranking help? nDCG@10 of keyword, dense, fused and reranked search, and the difference.

    python benchmarks/judged.py FOLDER
    python benchmarks/reranking.py FOLDER/* [--depth 20] [--questions 300] [--json FILE]

For the company's dev and test questions, and for any folder in BEIR's layout: BM25 and dense
search, their reciprocal-rank fusion (RRF), and the first 20 of that in the reranker's order, with
95 % bootstrap intervals. The last line of each table compares reranked with the best of the other
three on the same questions: where its interval lies above zero, reranking beats whichever search
you would have chosen without it. The vectors and the logits come from the endpoints that
`COOKBOOK_ENDPOINTS` names, over HTTP as in the recipes.

The company's documents in force are cut into chunks as in the recipes; in a folder of BEIR's a
document is one chunk, its title first. The servers are started if they do not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bm25s
import httpx
import numpy as np
import numpy.typing as npt
import Stemmer

from nim_cookbook import corpus, endpoints, indexing
from nim_cookbook.errors import CookbookError
from nim_cookbook.evaluation import Chunk, Scores, bootstrap, paired_bootstrap, score_retrieval

METRIC = "ndcg@10"
LIST = 100  # results of each search that are fused
RRF = 60  # the constant of Cormack, Clarke and Buettcher (SIGIR 2009)
TEXTS = 64  # texts in one embedding request


def company_chunks() -> list[Chunk]:
    """Return the chunks of the company's documents in force, cut as in the recipes."""
    files, _ = indexing.in_force(corpus.company_files())
    made = indexing.company_chunks(files)
    return [Chunk(chunk.meta["document"], chunk.content or "") for chunk in made]


def beir_chunks(collection: corpus.Collection) -> list[Chunk]:
    """Return one chunk for each document, its title first."""
    texts = [(s.id, f"{s.title}. {s.text}" if s.title else s.text) for s in collection.sources]
    return [Chunk(name, text) for name, text in texts if text.strip()]


def keyword_search(texts: Sequence[str], questions: Sequence[str]) -> list[list[int]]:
    """Return for each question the texts that BM25 finds, best first."""
    stemmer = Stemmer.Stemmer("english")
    quiet = {"show_progress": False}
    of_texts, of_questions = (
        bm25s.tokenize(list(given), stopwords="en", stemmer=stemmer, **quiet)
        for given in (texts, questions)
    )
    index = bm25s.BM25()
    index.index(of_texts, **quiet)
    rows, scores = index.retrieve(of_questions, k=min(LIST, len(texts)), **quiet)
    return [[int(i) for i in row[score > 0]] for row, score in zip(rows, scores, strict=True)]


def dense_search(
    texts: npt.NDArray[np.float32], questions: npt.NDArray[np.float32]
) -> list[list[int]]:
    """Return for each question the texts nearest to it; vectors have length one."""
    order = np.argsort(-(questions @ texts.T), axis=1, kind="stable")
    return [[int(i) for i in row[:LIST]] for row in order]


def fuse(*lists: Sequence[int]) -> list[int]:
    """Return the fused order of lists by reciprocal rank."""
    scores: dict[int, float] = {}
    for ranking in lists:
        for place, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (RRF + place)
    return sorted(scores, key=lambda item: -scores[item])


class Client:
    """The two endpoints, over HTTP."""

    def __init__(self, nim: endpoints.Endpoints) -> None:
        self._nim = nim
        self._http = httpx.Client(timeout=300)

    def embed(self, texts: Sequence[str], kind: str) -> npt.NDArray[np.float32]:
        """Return vectors of length one, shape (texts, width); `kind` is `query` or `chunk`."""
        rows: list[list[float]] = []
        for start in range(0, len(texts), TEXTS):
            part = list(texts[start : start + TEXTS])
            body = {"input": part, "input_type": kind, "truncate": "END"}
            answer = self._post("embedding", "/embeddings", body)
            rows += [entry["embedding"] for entry in answer["data"]]
            counter(f"embedding, {kind}", len(rows), len(texts))
        vectors = np.array(rows, np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def rank(self, question: str, texts: Sequence[str]) -> list[int]:
        """Return the texts' indices, most relevant first."""
        given = [{"text": text} for text in texts]
        body = {"query": {"text": question}, "passages": given, "truncate": "END"}
        answer = self._post("reranking", "/ranking", body)
        return [int(entry["index"]) for entry in answer["rankings"]]

    def _post(self, role: str, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        endpoint = self._nim.embedding if role == "embedding" else self._nim.reranking
        reply = self._http.post(
            endpoint.url + path,
            json={**body, "model": endpoint.model},
            headers={"Authorization": f"Bearer {endpoint.key}"},
        )
        reply.raise_for_status()
        parsed: dict[str, Any] = reply.json()
        return parsed


def searches(
    client: Client,
    found: Sequence[Chunk],
    questions: Sequence[corpus.Query],
    depth: int,
) -> dict[str, list[list[int]]]:
    """Return the rankings of all four searches, by name."""
    texts, asked = [p.text for p in found], [query.question for query in questions]
    keyword = keyword_search(texts, asked)
    dense = dense_search(client.embed(texts, "passage"), client.embed(asked, "query"))
    fused = [fuse(*pair) for pair in zip(keyword, dense, strict=True)]
    reranked = []
    for number, (question, order) in enumerate(zip(asked, fused, strict=True), start=1):
        head = order[:depth]
        ranked = client.rank(question, [texts[i] for i in head])
        reranked.append([head[i] for i in ranked] + order[depth:])
        counter("reranking, question", number, len(asked))
    return {"BM25": keyword, "dense": dense, "RRF": fused, "reranked": reranked}


def scored(
    rankings: Mapping[str, list[list[int]]],
    found: Sequence[Chunk],
    questions: Sequence[corpus.Query],
) -> dict[str, Scores]:
    """Return nDCG@10 of each question, by search."""
    scores = {}
    for name, orders in rankings.items():
        run = {
            query.id: [found[i] for i in order[:10]]
            for query, order in zip(questions, orders, strict=True)
        }
        scores[name] = score_retrieval(run, questions, metrics=[METRIC]).values[METRIC]
    return scores


def show(name: str, size: int, scores: Mapping[str, Scores]) -> dict[str, object]:
    """Print a collection's table and return its numbers."""
    print(f"{name}: {size} chunks, {len(scores['RRF'])} questions")
    for search, values in scores.items():
        print(f"  {search:<16} {bootstrap(values)}")
    best = max(("BM25", "dense", "RRF"), key=lambda search: scores[search].mean())
    difference = paired_bootstrap(scores["reranked"], scores[best])
    signs = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    print(f"  {f'reranked - {best}':<15} {signs}, p = {difference.p:.3f}", flush=True)
    means = {search: round(float(values.mean()), 4) for search, values in scores.items()}
    ends = [round(difference.low, 4), round(difference.high, 4)]
    count = len(scores["RRF"])
    return {"collection": name, "questions": count, **means, "best": best, "interval": ends}


def collections(folders: Sequence[str], limit: int | None) -> list[tuple[str, Any, Any]]:
    """Return name, chunks and judged questions of each collection."""
    company = corpus.load_company()
    cut = company_chunks()
    asked = [(f"company, {split}", cut, company.split(split)) for split in ("dev", "test")]
    for folder in folders:
        given = corpus.load_beir(folder)
        # Where a folder has several splits, a query is scored once.
        unique = {query.id: query for query in given.queries}
        name = Path(folder).resolve().name
        asked.append((name, beir_chunks(given), tuple(unique.values())))
    return [(n, p, [q for q in queries if q.evidence][:limit]) for n, p, queries in asked]


def counter(what: str, done: int, total: int) -> None:
    """Show progress on one line, where somebody watches."""
    if sys.stderr.isatty():
        end = "\r\033[K" if done == total else ""
        print(f"\r\033[K{what} {done} of {total}", end=end, file=sys.stderr, flush=True)


def main() -> int:
    """Run the searches on each collection and print a table as it is ready."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", metavar="BEIR_FOLDER")
    parser.add_argument("--depth", type=int, default=20, help="chunks that are reranked")
    parser.add_argument("--questions", type=int, help="use only the first so many of each")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args()
    results: list[dict[str, object]] = []
    nim = None
    try:
        wanted = collections(options.folders, options.questions)
        nim = endpoints.connect("nim")
        print("\n".join(f"{role}: {nim.weights[role]}" for role in ("embedding", "reranking")))
        client = Client(nim)
        for name, found, questions in wanted:
            rankings = searches(client, found, questions, options.depth)
            results.append(show(name, len(found), scored(rankings, found, questions)))
    except KeyboardInterrupt:
        print("\nStopped; the tables above are complete.", file=sys.stderr)
        return 130
    except (CookbookError, httpx.HTTPError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        if options.json and results:
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if nim is not None:
            nim.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
