"""What is searched for in the place of a follow-up, or of a question on two documents.

    python benchmarks/conversations.py [--json data/conversations/measured.json]
                                       [--answers N] [--minutes N]

rewritten   every follow-up of test, by the chat model and the prompt `REWRITE`
parts       every question of test on two documents, and as many on one, by the prompt `DECOMPOSE`
answers     where wanted, the served pipeline on N follow-ups of test, asked in four ways: the chat
            model's answer, and whether the quote is in the three chunks that it was shown

The file is written after each question; a run that was stopped goes on where it was. Recipe 16
shows it, and searches by the vectors for what is in it. The endpoints are those that
`COOKBOOK_ENDPOINTS` and `COOKBOOK_MODELS` name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from rich.console import Console
from rich.progress import track

from nim_cookbook import answering, conversations, corpus, endpoints, indexing
from nim_cookbook.data import Evidence, FollowUp, Query

ROOT = Path(__file__).resolve().parents[1]
Done = dict[str, Any]
console = Console(stderr=True)


class Stopped(Exception):
    """The time is over; the rest is for the next run."""


def main() -> None:
    """Measure what is missing in the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, default=ROOT / "data/conversations/measured.json")
    parser.add_argument("--answers", type=int, default=0, help="follow-ups that are answered")
    parser.add_argument("--minutes", type=float, default=600, help="stop after so many")
    options = parser.parse_args()
    done: Done = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else {}
    limit = time.monotonic() + 60 * options.minutes
    with contextlib.closing(endpoints.connect()) as api:
        if done.setdefault("weights", api.weights) != api.weights:
            raise SystemExit(f"{options.json} is of other weights: {done['weights']}.")

        def step(name: str, ids: Iterable[str], work: Callable[[str], Any]) -> None:
            """Do what is missing of a step, such as `answers, ID`; `work` gives one result."""
            kept = done
            for key in name.split(", "):
                kept = kept.setdefault(key, {})
            missing = [found for found in ids if found not in kept]
            for found in track(missing, name, console=console, disable=not console.is_terminal):
                if time.monotonic() > limit:
                    raise Stopped
                kept[found] = work(found)
                text = json.dumps(done, ensure_ascii=False, indent=1)
                options.json.write_text(text + "\n", "utf-8")

        try:
            measure(api, step, done, options.answers)
        except Stopped:
            print("Stopped; call it again to go on.")


def measure(api: endpoints.Endpoints, step: Callable[..., None], done: Done, answers: int) -> None:
    """Go through the steps."""
    company = corpus.load_company()
    tested = {query.id: query for query in corpus.load_follow_ups("test")}
    rewrite = conversations.pipeline(api, conversations.REWRITE)

    def rewritten(name: str) -> str:
        query = tested[name]
        given = conversations.inputs(earlier(query), query.question)
        lines = conversations.lines(rewrite.run(given))
        return lines[0] if lines else conversations.joined(earlier(query), query.question)

    step("rewritten", tested, rewritten)

    split = conversations.pipeline(api, conversations.DECOMPOSE)
    asked = {query.id: query.question for query in to_split(company)}

    def parts(name: str) -> list[str]:
        given = {"prompt_builder": {"question": asked[name]}}
        return conversations.lines(split.run(given))[:3] or [asked[name]]

    step("parts", asked, parts)

    chunks = indexing.embedded_company(api.embedding)
    width = len(chunks[0].embedding or ())
    store = QdrantDocumentStore(":memory:", embedding_dim=width, progress_bar=False)
    store.write_documents(chunks)
    pipeline = answering.query_pipeline(api, store, threshold=api.reranking.refusal_logit)
    for name in random.Random(16).sample(sorted(tested), answers):
        query = tested[name]
        (quote,) = query.evidence

        def answer(way: str, query: FollowUp = query, quote: Evidence = quote) -> Done:
            text = ways(query, done["rewritten"][query.id])[way]
            given = {
                "text_embedder": {"text": text},
                "ranker": {"query": text},
                # Of joined questions the chat model may answer the first.
                "prompt_builder": {"question": query.question if way == "joined" else text},
            }
            found = answering.answer_of(text, pipeline.run(given, include_outputs_from={"ranker"}))
            shown = any(
                corpus.relevant(chunk.content or "", quote, chunk.meta["document"])
                for chunk in found.sources
            )
            return {"answer": found.text, "shown": shown}

        step(f"answers, {name}", ways(query, ""), answer)


def earlier(query: FollowUp) -> list[str]:
    """Return the questions before a follow-up."""
    return [turn.question for turn in query.turns]


def ways(query: FollowUp, rewritten: str) -> dict[str, str]:
    """Return what can be searched for in the place of a follow-up, by the name of the way."""
    return {
        "alone": query.question,
        "joined": conversations.joined(earlier(query), query.question),
        "rewritten": rewritten,
        "by hand": query.standalone,
    }


def to_split(company: corpus.Collection) -> list[Query]:
    """Return the questions of test on two documents, and as many look-ups."""
    two = [query for query in company.split("test") if query.kind == "two-documents"]
    others = [query for query in company.split("test") if query.kind == "lookup"]
    return two + random.Random(16).sample(others, len(two))


if __name__ == "__main__":
    main()
