"""How many answers are right, and how brief are they? With 95 % intervals.

    python benchmarks/answers.py [people] [reading] [pipeline]
                                 [--split test] [--questions N] [--json FILE]

Three measures; all of them if none is named:

people    the pipeline and the prompt of deepset's article of March 2024 over three sentences: who
          lives in a city, where does a person live. Right is an answer with that name or city and
          no other that the question does not name itself. Wilson's interval.
reading   the company's questions, each with the chunks that hold its evidence: the chat model and
          the prompt of `nim_cookbook.answering`, without retrieval. Bootstrap intervals.
pipeline  the same questions through the pipeline of `nim-cookbook ask`, over all of the company's
          papers, with the reranking model's own threshold for refusing. Bootstrap intervals.

The answers come from the endpoints that `COOKBOOK_ENDPOINTS` and `COOKBOOK_MODELS` name; local
servers are started if they do not run. Unanswerable questions are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.core.errors import PipelineRuntimeError
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaTextEmbedder
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from rich.console import Console
from rich.progress import track

from nim_cookbook import answering, corpus, data, endpoints, evaluation, finetuning, indexing
from nim_cookbook.data import Query
from nim_cookbook.errors import CookbookError
from nim_cookbook.evaluation import AnswerEvaluation, evaluate_answers

T = TypeVar("T")
Row = dict[str, Any]

HOMES = {"Jean": "Paris", "Mark": "Berlin", "Giorgio": "Rome"}
#: The prompt of https://haystack.deepset.ai/blog/haystack-nvidia-integration, word for word.
ARTICLE = """ Answer the query, based on the
content in the documents.
If you can't answer based on the given documents, say so.


Documents:
{% for doc in documents %}
 {{doc.content}}
{% endfor %}


Query: {{query}}
"""

console = Console(stderr=True)


def each(items: Sequence[T], what: str) -> Iterable[T]:
    """Go through items with a progress bar."""
    return track(items, what, console=console, disable=not console.is_terminal)


def people(api: endpoints.Endpoints) -> AnswerEvaluation:
    """Ask the six questions of the article's pipeline; its retriever has its default `top_k`."""
    store = InMemoryDocumentStore(index="answers", shared=False)
    store.write_documents(
        indexing.document_embedder(api.embedding).run(
            [Document(**record) for record in data.people()]
        )["documents"]
    )
    pipeline = Pipeline()
    pipeline.add_component(
        "text_embedder",
        NvidiaTextEmbedder(
            model=api.embedding.model,
            api_url=api.embedding.url,
            api_key=Secret.from_env_var(api.embedding.key_variable),
        ),
    )
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store))
    pipeline.add_component(
        "prompt_builder",
        ChatPromptBuilder([ChatMessage.from_user(ARTICLE)], required_variables="*"),
    )
    pipeline.add_component(
        "generator",
        NvidiaChatGenerator(
            model=api.chat.model,
            api_base_url=api.chat.url,
            api_key=Secret.from_env_var(api.chat.key_variable),
            generation_kwargs={"temperature": 0, "seed": 1, "max_tokens": answering.MAX_TOKENS},
        ),
    )
    pipeline.connect("text_embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "prompt_builder.documents")
    pipeline.connect("prompt_builder.prompt", "generator.messages")
    questions = [Query(city, f"Who lives in {city}?", (name,)) for name, city in HOMES.items()]
    questions += [Query(name, f"Where does {name} live?", (c,)) for name, c in HOMES.items()]
    answers = []
    for question in each(questions, "people"):
        asked = {
            "text_embedder": {"text": question.question},
            "prompt_builder": {"query": question.question},
        }
        answers.append(pipeline.run(asked)["generator"]["replies"][0].text or "")
    return evaluate_answers(questions, answers)


def reading(api: endpoints.Endpoints, cases: Sequence[finetuning.Case]) -> list[str]:
    """Return the answers of the chat model, which is shown the right chunks."""
    unused = QdrantDocumentStore(":memory:")
    parts = answering.query_pipeline(api, unused)
    builder, generator = parts.get_component("prompt_builder"), parts.get_component("generator")
    answers = []
    for case in each(cases, "reading"):
        prompt = builder.run(question=case.query.question, documents=list(case.chunks))["prompt"]
        answers.append(generator.run(messages=prompt)["replies"][0].text or "")
    return answers


def whole(api: endpoints.Endpoints, queries: Sequence[corpus.Query]) -> list[str]:
    """Return the answers of `nim-cookbook ask` over the company's papers."""
    embedder = indexing.document_embedder(api.embedding)
    width = len(embedder.run([Document(content="width")])["documents"][0].embedding or [])
    store = QdrantDocumentStore(":memory:", embedding_dim=width, progress_bar=False)
    files = indexing.source_files(corpus.company_files())
    with console.status(f"indexing {len(files)} papers"):
        indexing.update(store, files, preparation=indexing.preparation(), embedder=embedder)
    pipeline = answering.query_pipeline(api, store, threshold=api.reranking.refusal_logit)
    return [answering.ask(pipeline, query.question).text for query in each(queries, "pipeline")]


def rows(queries: Sequence[corpus.Query], answers: Sequence[str]) -> Iterator[Row]:
    """Yield the scores of all questions, then of each kind."""
    judged = evaluation.evaluate_answers(queries, answers)
    kinds = sorted({query.kind for query in queries})
    for name, part in (("all", judged), *((kind, judged.of_kind(kind)) for kind in kinds)):
        yield {
            "questions": name,
            "n": len(part.rows),
            "holds the reference": str(part.contains),
            "token F1": str(part.f1),
            "words": round(sum(len(r.answer.split()) for r in part.rows) / len(part.rows), 1),
        }


def people_rows(scores: AnswerEvaluation) -> list[Row]:
    """Return the score of the people, and each answer."""
    right = evaluation.proportion([row.right for row in scores.rows])
    answers = [
        {"question": r.query.question, "answer": r.answer, "right": r.right} for r in scores.rows
    ]
    return [{"questions": "all", "n": right.n, "right": str(right)}, *answers]


def measured(name: str, api: endpoints.Endpoints, split: str, most: int | None) -> Row:
    """Return the scores and answers of one measure."""
    if name == "people":
        return {"scores": people_rows(people(api))}
    chunks = indexing.company_chunks(corpus.company_files())
    queries = [query for query in corpus.load_company().split(split) if query.answerable]
    cases = finetuning.cases(queries, chunks)
    if most is not None and most < len(cases):
        cases = random.Random(0).sample(cases, most)
    queries = [case.query for case in cases]
    answers = reading(api, cases) if name == "reading" else whole(api, queries)
    given = {query.id: answer for query, answer in zip(queries, answers, strict=True)}
    return {"scores": list(rows(queries, answers)), "answers": given}


def show(name: str, found: Sequence[Row]) -> None:
    """Print one measure."""
    print(name)
    for row in found:
        print("  " + "  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)


def main() -> int:
    """Measure, print each table as it is ready, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("people", "reading", "pipeline")
    parser.add_argument("measures", nargs="*", metavar="measure", help=", ".join(names))
    parser.add_argument("--split", choices=corpus.SPLITS, default="test")
    parser.add_argument("--questions", type=int, help="a random so many of the company's questions")
    parser.add_argument("--json", type=Path, help="write the numbers and answers here as well")
    options = parser.parse_args()
    if unknown := set(options.measures) - set(names):
        parser.error(f"there is no measure {', '.join(sorted(unknown))}: name {', '.join(names)}")
    results: Row = {"split": options.split}
    try:
        with contextlib.closing(endpoints.connect("nim")) as api:
            results["weights"] = api.weights
            print("\n".join(f"{role}: {what}" for role, what in results["weights"].items()))
            for name in options.measures or names:
                results[name] = measured(name, api, options.split, options.questions)
                show(name, results[name]["scores"])
    except KeyboardInterrupt:
        print("\nStopped; the tables above are complete.", file=sys.stderr)
        return 130
    except (CookbookError, PipelineRuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        if options.json and len(results) > 1:
            text = json.dumps(results, indent=2, ensure_ascii=False)
            options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
