"""The pipelines as YAML files: what is in them, how they are written and how they are loaded.

A file holds the steps, the prompt and the models' ids. It holds no key, only the names of the
variables that do. Where the endpoints and the store are is configuration: `load` puts what
`connect()` and `open_store()` found in the place of what the file says, so that one file serves
the API catalog, self-hosted NIMs and local stand-ins.

Loading imports the classes that a file names, and a file from somebody else could name anything.
Haystack therefore loads from an allow-list of modules; `ALLOWED` adds those of ours that the
indexing pipeline and the winner of a sweep (`nim_cookbook.designs`) need, and nothing else passes.

    python -m rag_service.pipelines            # writes deploy/pipelines/*.yaml
    python -m rag_service.pipelines --check    # tells whether they are current
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from haystack import Pipeline
from haystack.components.writers import DocumentWriter
from haystack.core.errors import DeserializationError, PipelineError
from haystack.document_stores.types import DocumentStore, DuplicatePolicy
from haystack.marshal import YamlMarshaller
from haystack.utils import Secret
from haystack_integrations.components.rankers.nvidia.truncate import RankerTruncateMode
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook import answering, conversations, designs
from nim_cookbook.endpoints import HOSTED_URL, Endpoint, Endpoints, thinking_fields
from nim_cookbook.errors import ConfigurationError, CookbookError
from nim_cookbook.keys import NVIDIA_KEY
from nim_cookbook.models import ROLES, Role, load_registry

Name = Literal["ask", "search", "rewrite", "indexing"]

NAMES: tuple[Name, ...] = ("ask", "search", "rewrite", "indexing")
#: Where the files are, if not where the package has them.
FOLDER = "COOKBOOK_PIPELINES"
#: Modules beyond Haystack's own whose classes a file may name.
ALLOWED = ["nim_cookbook.indexing", "nim_cookbook.designs"]
#: How Compose and the chart call Qdrant.
QDRANT_URL = "http://qdrant:6333"
# What the types of components tell about the model that they call.
_ROLE_OF: dict[str, Role] = {
    "NvidiaTextEmbedder": "embedding",
    "NvidiaDocumentEmbedder": "embedding",
    "NvidiaRanker": "reranking",
    "NvidiaChatGenerator": "chat",
}
_HEADER = "# Written by `python -m rag_service.pipelines`: change the code, not this file.\n"


def pipelines_dir() -> Path:
    """Return the folder of the YAML files: `COOKBOOK_PIPELINES`, the wheel's or the clone's.

    Raises:
        ConfigurationError: There is none.
    """
    package = Path(__file__).resolve().parent
    chosen = os.environ.get(FOLDER, "").strip()
    places = (
        [Path(chosen)]
        if chosen
        else [package / "_pipelines", package.parent.parent / "deploy" / "pipelines"]
    )
    for place in places:
        if (place / "ask.yaml").is_file():
            return place
    raise ConfigurationError(
        f"The pipelines are not in {places[-1]}: set {FOLDER} to the folder that holds ask.yaml, "
        "or write them with `python -m rag_service.pipelines`."
    )


def build(name: Name) -> Pipeline:
    """Return a pipeline as recipes 03, 08 and 16 build it, for the API catalog and Qdrant by URL.

    Args:
        name: `ask` goes from a question to an answer, `search` to chunks, `rewrite` from a
            follow-up to a question that stands alone, and `indexing` from files to vectors.
    """
    api = _catalog()
    if name == "rewrite":
        return conversations.pipeline(api, conversations.REWRITE)
    store = QdrantDocumentStore(
        url=QDRANT_URL,
        api_key=Secret.from_env_var("QDRANT_API_KEY", strict=False),
        index="company",
        embedding_dim=load_registry().default("embedding").dimensions or 768,
        progress_bar=False,
        return_embedding=False,
    )
    if name == "indexing":
        return designs.indexing_pipeline(designs.Design(), api, store)
    pipeline = answering.query_pipeline(api, store)
    if name == "search":
        for step in ("generator", "prompt_builder", "router"):
            pipeline.remove_component(step)
    return pipeline


def serialised(name: Name) -> str:
    """Return a pipeline's file: YAML with keys in order, so that a diff shows what changed."""
    # A first round trip brings the connections into their final order.
    once = Pipeline.loads(build(name).dumps(), allowed_modules=ALLOWED)
    return _HEADER + once.dumps()


def load(
    name: Name, api: Endpoints, store: DocumentStore | None = None, folder: Path | None = None
) -> Pipeline:
    """Load a pipeline and point it at the endpoints and the store of this installation.

    Where the reranking model has a threshold for refusing, it takes the place of the file's.

    Args:
        name: Which one.
        api: Where the models are.
        store: Where the chunks are; None for the store in the file.
        folder: Where the file is; see `pipelines_dir`.

    Raises:
        ConfigurationError: The file is missing, is no pipeline, or names a class from a module
            that is not on the allow-list.
    """
    path = (folder or pipelines_dir()) / f"{name}.yaml"
    try:
        data = YamlMarshaller().unmarshal(path.read_text(encoding="utf-8"))
        for component in data["components"].values():
            _point(component, api)
        limit = api.reranking.refusal_logit
        if {"router", "ranker"} <= set(data["components"]) and limit is not None:
            data["components"]["router"] = answering.router(limit).to_dict()
        instances = _over(store, data["components"]) if store else {}
        pipeline = Pipeline.from_dict(data, allowed_modules=ALLOWED, components=instances)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
    except (
        DeserializationError,
        PipelineError,
        yaml.YAMLError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigurationError(f"{path} cannot be loaded: {cause[0][:300]}") from error
    if "ranker" in data["components"]:
        # A chunk may be longer than the reranker takes; a ranker that has this is not saved.
        cast(Any, pipeline.get_component("ranker")).truncate = RankerTruncateMode.END
    return pipeline


def _over(store: DocumentStore, components: Mapping[str, Any]) -> dict[str, Any]:
    """Return the components that work on a store, in the place of those in the file."""
    from rag_service.stores import embedding_retriever, keyword_retriever

    instances: dict[str, Any] = {}
    if "retriever" in components:
        top_k = components["retriever"]["init_parameters"]["top_k"]
        instances["retriever"] = embedding_retriever(store, top_k)
    if "keywords" in components:
        top_k = components["keywords"]["init_parameters"]["top_k"]
        instances["keywords"] = keyword_retriever(store, top_k)
    if "writer" in components:
        instances["writer"] = DocumentWriter(store, policy=DuplicatePolicy.OVERWRITE)
    return instances


def _point(component: dict[str, Any], api: Endpoints) -> None:
    """Put an endpoint's address, model, key variable and thinking into a component's settings."""
    role = _ROLE_OF.get(component["type"].rpartition(".")[2])
    if role is None:
        return
    endpoint: Endpoint = getattr(api, role)
    settings = component["init_parameters"]
    settings["model"] = endpoint.model
    settings["api_base_url" if role == "chat" else "api_url"] = endpoint.url
    settings["api_key"] = Secret.from_env_var(endpoint.key_variable).to_dict()
    if role == "chat":
        options = settings["generation_kwargs"] or {}
        options = {**options, "extra_body": endpoint.extra_body}
        if endpoint.thinking and "max_tokens" in options:
            options["max_tokens"] += endpoint.thinking
        settings["generation_kwargs"] = options


def _catalog() -> Endpoints:
    registry = load_registry()
    return Endpoints(
        "hosted",
        {
            role: Endpoint(
                role=role,
                url=HOSTED_URL,
                model=registry.default(role).id,
                key_variable=NVIDIA_KEY,
                weights=f"{registry.default(role).id} (hosted by NVIDIA)",
                rerank_url=registry.default(role).hosted_url,
                extra_body=thinking_fields(0) if role == "chat" else {},
            )
            for role in ROLES
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or tell whether they are current; the command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rag_service.pipelines",
        description="Write the query and indexing pipelines as YAML.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where to (default: deploy/pipelines of this clone)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one is old")
    options = parser.parse_args(arguments)
    try:
        folder = options.folder or pipelines_dir()
        return _check(folder) if options.check else _write(folder)
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def _write(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.yaml").write_text(serialised(name), encoding="utf-8")
        print(folder / f"{name}.yaml")
    return 0


def _check(folder: Path) -> int:
    """Compare what the files mean; their connections may stand in another order."""
    old = 0
    for name in NAMES:
        path = folder / f"{name}.yaml"
        held = YamlMarshaller().unmarshal(path.read_text("utf-8")) if path.is_file() else None
        if held != YamlMarshaller().unmarshal(serialised(name)):
            print(f"{path} is not current: run `python -m rag_service.pipelines`.")
            old += 1
    return int(old > 0)


if __name__ == "__main__":
    raise SystemExit(main())
