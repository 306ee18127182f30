"""Answers of the chat model with the chunks it was shown, to be labelled by hand (recipe 21).

    python benchmarks/faithfulness.py [--test 85]

All questions of the company's dev split and some of its test split, drawn by a seed, through the
pipeline of recipe 03 over all papers in force; no question is refused before the model is asked.
Each answer is added to data/faithfulness/answers.jsonl at once, and one that is there is not asked
again: a run that was stopped goes on. Labels are in another file, which this command never writes.

The answers come from the endpoints that `COOKBOOK_ENDPOINTS` and `COOKBOOK_MODELS` name. On two
cores with the default set an answer takes about eight seconds.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import chain, zip_longest
from pathlib import Path

from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook import answering, corpus, data, endpoints, indexing
from nim_cookbook.data import Query

FILE = Path(__file__).resolve().parent.parent / "data" / "faithfulness" / "answers.jsonl"


def drawn(most: int) -> list[Query]:
    """Return the questions, those of dev and test by turns, so that half a run has both."""
    company = corpus.load_company()
    dice = random.Random(0)
    dev = dice.sample(company.split("dev"), len(company.split("dev")))
    test = dice.sample(company.split("test"), most)
    return [query for query in chain(*zip_longest(dev, test)) if query is not None]


def main() -> None:
    """Ask what has not been asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test", type=int, default=85, help="questions of the test split")
    arguments = parser.parse_args()
    api = endpoints.connect()
    chunks = indexing.embedded_company(api.embedding)
    store = QdrantDocumentStore(
        ":memory:", embedding_dim=len(chunks[0].embedding or []), progress_bar=False
    )
    store.write_documents(chunks)
    pipeline = answering.query_pipeline(api, store)
    done = {row["id"] for row in data.read_jsonl(FILE)} if FILE.is_file() else set()
    for query in drawn(arguments.test):
        if query.id in done:
            continue
        answer = answering.ask(pipeline, query.question)
        row = {
            "id": query.id,
            "split": query.split,
            "question": query.question,
            "chunks": [{"document": d.meta["document"], "text": d.content} for d in answer.sources],
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "weights": api.chat.weights,
        }
        with FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(query.id, answer.text, flush=True)
    api.close()


if __name__ == "__main__":
    main()
