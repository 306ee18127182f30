"""The process that test_interrupted_index.py kills: one update of an embedded Qdrant index."""

from __future__ import annotations

import shutil
from pathlib import Path

from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaDocumentEmbedder
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook import indexing
from nim_cookbook.corpus import company_files
from nim_cookbook.models import load_registry

WIDTH = load_registry().weights_for("embedding").dimensions or 0
KINDS = ("news", "policy")


def open_store(folder: Path) -> QdrantDocumentStore:
    return QdrantDocumentStore(
        path=str(folder), index="company", embedding_dim=WIDTH, progress_bar=False
    )


def update(folder: Path, url: str, batches: tuple[str, ...], started=None) -> None:
    """Bring the index to the state after some batches; all of them when none is named."""
    if started is not None:
        started.set()
    files, gone = indexing.in_force(f for f in company_files(*batches) if f.kind in KINDS)
    store = open_store(folder)
    indexing.update(
        store,
        indexing.source_files(files),
        gone=gone,
        preparation=indexing.preparation(),
        embedder=NvidiaDocumentEmbedder(
            model=load_registry().default("embedding").id,
            api_url=url,
            api_key=Secret.from_env_var("COOKBOOK_LOCAL_KEY"),
            progress_bar=False,
        ),
        settings="small weights",
    )
    store.close()


def content(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return text, metadata and vector of every chunk by its id, as a new process sees them."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy)
    store = open_store(copy)
    found = {
        d.id: (d.content, sorted(d.meta.items(), key=str), tuple(d.embedding or ()))
        for d in store.filter_documents()
    }
    assert len(found) == store.count_documents()
    store.close()
    shutil.rmtree(copy)
    return found
