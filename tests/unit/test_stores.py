"""Where Qdrant is."""

from __future__ import annotations

import pytest
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook.errors import ConfigurationError
from nim_cookbook.stores import qdrant_location


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("QDRANT_URL", "QDRANT_API_KEY"):
        monkeypatch.setenv(name, "")


def test_embedded_by_default(tmp_path):
    store = QdrantDocumentStore(**qdrant_location(tmp_path / "index"), embedding_dim=4)
    assert store.count_documents() == 0
    store.close()
    assert (tmp_path / "index" / "meta.json").is_file()


def test_a_server_by_url_and_its_key_stays_out_of_what_is_written_down(monkeypatch, tmp_path):
    monkeypatch.setenv("QDRANT_URL", "https://qdrant.example.org:6333")
    monkeypatch.setenv("QDRANT_API_KEY", "fake-key-for-tests")
    store = QdrantDocumentStore(**qdrant_location(tmp_path), embedding_dim=4)
    written = store.to_dict()["init_parameters"]
    assert written["url"] == "https://qdrant.example.org:6333"
    assert written["path"] is None
    assert written["api_key"]["env_vars"] == ["QDRANT_API_KEY"]
    assert "fake-key" not in str(written)
    assert not list(tmp_path.iterdir())


def test_a_dotenv_file_is_read(monkeypatch, tmp_path):
    monkeypatch.delenv("QDRANT_URL")
    (tmp_path / ".env").write_text("QDRANT_URL=http://127.0.0.1:6333\n")
    assert qdrant_location("unused")["url"] == "http://127.0.0.1:6333"


@pytest.mark.parametrize(
    "url",
    ["localhost:6333", "ftp://host", "http://", "http://me:fake-secret@host:6333", "http://a b"],
)
def test_what_is_no_url_is_refused_without_showing_it(monkeypatch, url):
    monkeypatch.setenv("QDRANT_URL", url)
    with pytest.raises(ConfigurationError, match="QDRANT_URL is not the URL") as caught:
        qdrant_location("unused")
    assert "fake-secret" not in str(caught.value)
