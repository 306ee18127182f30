"""Answers of the chat model with the chunks it was shown, to be labelled by hand (recipe 21).

    python benchmarks/faithfulness.py [--recipe 08] [--most 60]
    python benchmarks/faithfulness.py --judge 10

Questions of the company's dev and test splits by turns, drawn by a seed, over all papers in force.
`--recipe 03` shows the model the three best of twenty chunks and asks for a few words copied from a
source; `--recipe 08` shows it the best of four and lets it write a sentence. No question is refused
before the model is asked. Each answer is added to data/faithfulness/answers.jsonl at once, and one
that is there is not asked again: a run that was stopped goes on. Labels are in another file, which
this command never writes.

`--judge` asks the chat model itself whether the first answers of the test split are supported, by
Haystack's FaithfulnessEvaluator, with and without JSON mode; it writes judge.jsonl beside them.

The answers come from the endpoints that `COOKBOOK_ENDPOINTS` and `COOKBOOK_MODELS` name.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from itertools import chain, zip_longest
from pathlib import Path

from haystack.components.evaluators import FaithfulnessEvaluator
from haystack.dataclasses import ChatMessage
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook import answering, corpus, data, endpoints, indexing
from nim_cookbook.data import Query

FILE = Path(__file__).resolve().parent.parent / "data" / "faithfulness" / "answers.jsonl"
#: The prompt of recipe 08.
SENTENCE = """Answer the question from the source, as briefly as possible. \
If the source does not hold the answer, say so.

{{ documents[0].content }}

Question: {{ question }}"""


def drawn() -> list[Query]:
    """Return the questions, those of dev and test by turns, so that half a run has both."""
    company = corpus.load_company()
    dice = random.Random(0)
    dev = dice.sample(company.split("dev"), len(company.split("dev")))
    test = dice.sample(company.split("test"), 85)
    return [query for query in chain(*zip_longest(dev, test)) if query is not None]


def judge(api: endpoints.Endpoints, most: int) -> None:
    """Judge answers; an answer without the wanted JSON has no score."""
    kept = [row for row in data.read_jsonl(FILE) if row["split"] == "test" and row["answer"]]
    lines = []
    for mode in ("free text", "JSON mode"):
        generator = answering.chat_generator(api.chat, 150)
        if mode == "JSON mode":
            generator.generation_kwargs["response_format"] = {"type": "json_object"}
        evaluator = FaithfulnessEvaluator(
            raise_on_failure=False, progress_bar=False, chat_generator=generator
        )
        for row in kept[:most]:
            result = evaluator.run(
                questions=[row["question"]],
                contexts=[[chunk["text"] for chunk in row["chunks"]]],
                predicted_answers=[row["answer"]],
            )["results"][0]
            score = float(result["score"]) if result else None
            lines.append(
                {"id": row["id"], "mode": mode, "score": score, "weights": api.chat.weights}
            )
            print(lines[-1], flush=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    FILE.with_name("judge.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    """Ask what has not been asked, or judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=("03", "08"), default="08", help="whose pipeline")
    parser.add_argument("--most", type=int, default=166, help="answers to make")
    parser.add_argument("--judge", type=int, help="answers to judge, in place of making any")
    arguments = parser.parse_args()
    api = endpoints.connect()
    if arguments.judge:
        judge(api, arguments.judge)
        return
    chunks = indexing.embedded_company(api.embedding)
    store = QdrantDocumentStore(
        ":memory:", embedding_dim=len(chunks[0].embedding or []), progress_bar=False
    )
    store.write_documents(chunks)
    pipeline = answering.query_pipeline(api, store)
    if arguments.recipe == "08":
        pipeline = answering.query_pipeline(api, store, candidates=4, top_k=1)
        pipeline.get_component("prompt_builder").template = [ChatMessage.from_user(SENTENCE)]
    done = {row["id"] for row in data.read_jsonl(FILE)} if FILE.is_file() else set()
    for query in [query for query in drawn() if query.id not in done][: arguments.most]:
        began = time.perf_counter()
        answer = answering.ask(pipeline, query.question)
        row = {
            "id": query.id,
            "split": query.split,
            "recipe": arguments.recipe,
            "question": query.question,
            "chunks": [{"document": d.meta["document"], "text": d.content} for d in answer.sources],
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "weights": api.chat.weights,
        }
        with FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{query.id} {time.perf_counter() - began:.1f} s {answer.text}", flush=True)
    api.close()


if __name__ == "__main__":
    main()
