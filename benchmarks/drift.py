"""The day that all was well: what the judged test questions find, for recipe 20 to compare with.

    python benchmarks/drift.py

Writes data/drift/baseline.jsonl: a line for each answerable test question, with nDCG@10 of the
search by vectors, the ten chunks found, by the first eight characters of their ids, and the
weights that embedded. Run it anew when the documents, the splitting or the weights were changed on
purpose, and read what changed before you commit it. It takes a few seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from openai import OpenAI

from nim_cookbook import corpus, endpoints, indexing
from nim_cookbook.evaluation import Chunk, score_retrieval

FILE = Path(__file__).resolve().parent.parent / "data" / "drift" / "baseline.jsonl"


def main() -> None:
    """Search for all questions, and write what was found."""
    api = endpoints.connect()
    chunks = indexing.embedded_company(api.embedding)
    test = [query for query in corpus.load_company().split("test") if query.answerable]
    client = OpenAI(base_url=api.embedding.url, api_key=api.embedding.key)
    reply = client.embeddings.create(
        model=api.embedding.model,
        input=[query.question for query in test],
        extra_body={"input_type": "query"},
    )
    near = (
        np.array([item.embedding for item in reply.data])
        @ np.array([chunk.embedding for chunk in chunks]).T
    )
    found = [[chunks[n] for n in row[:10]] for row in np.argsort(-near)]
    run = {
        query.id: [Chunk(chunk.meta["document"], chunk.content or "") for chunk in row]
        for query, row in zip(test, found, strict=True)
    }
    scores = score_retrieval(run, test, metrics=("ndcg@10",)).values["ndcg@10"]
    lines = [
        json.dumps(
            {
                "id": query.id,
                "ndcg": float(score),
                "found": [chunk.id[:8] for chunk in row],
                "weights": api.embedding.weights,
            }
        )
        for query, score, row in zip(test, scores, found, strict=True)
    ]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} questions, nDCG@10 {scores.mean():.3f}")
    api.close()


if __name__ == "__main__":
    main()
