"""Tables and pictures for notebooks."""

import base64
import io
from html import escape

import nbformat
import pytest
from haystack import Pipeline, component
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaTextEmbedder
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from nbconvert import HTMLExporter
from PIL import Image

from capacity.load import Load
from capacity.plots import load_plot
from nim_cookbook import display, plots
from nim_cookbook.evaluation import Difference
from nim_cookbook.models import load_registry

WEIGHTS = "Tiny, Q4_1 (local stand-in)"
KEY = "nvapi-fake-key-for-tests"


@pytest.fixture
def pipeline(monkeypatch):
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    url = "http://127.0.0.1:8000/v1"
    registry = load_registry()
    secret = Secret.from_env_var("NVIDIA_API_KEY")
    made = Pipeline()
    made.add_component(
        "embedder",
        NvidiaTextEmbedder(model=registry.default("embedding").id, api_url=url, api_key=secret),
    )
    store = InMemoryDocumentStore(index="people")
    made.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    made.add_component(
        "prompt", ChatPromptBuilder([ChatMessage.from_user("{{documents}} {{question}}")])
    )
    made.add_component(
        "llm",
        NvidiaChatGenerator(model=registry.default("chat").id, api_base_url=url, api_key=secret),
    )
    links = [
        ("embedder.embedding", "retriever.query_embedding"),
        ("retriever.documents", "prompt.documents"),
        ("prompt.prompt", "llm.messages"),
    ]
    for sender, receiver in links:
        made.connect(sender, receiver)
    return made


def check_picture(picture, *words):
    assert len(base64.b64encode(picture.png)) < 200_000
    with Image.open(io.BytesIO(picture.png)) as image:
        image.load()
        assert image.width > 300
        assert image.convert("L").getextrema()[1] == 255  # a white ground, for dark themes
    data = picture._repr_mimebundle_(include=None, exclude=None)
    assert base64.b64encode(picture.png).decode() in data["text/html"]
    assert data["text/plain"] == repr(picture) == picture.alt
    for word in words:
        assert word in picture.alt


def test_a_pipeline_is_drawn_offline(pipeline, monkeypatch):
    import socket

    def no_network(*args):
        raise AssertionError("the drawing went online")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    picture = display.draw_pipeline(pipeline, title="Query pipeline")
    check_picture(picture, "Query pipeline", "retriever (InMemoryEmbeddingRetriever)")
    assert "embedder to retriever (embedding \u2192 query_embedding)" in picture.alt
    assert "input to embedder (text)" in picture.alt


@component
class Loud:
    @component.output_types(out=str)
    def run(self, text: str):
        return {"out": text}


def test_odd_component_names_are_drawn_as_they_are():
    made = Pipeline()
    for name in ('say "hi" <b>', "end", "input"):
        made.add_component(name, Loud())
    made.connect('say "hi" <b>', "end")
    made.connect("end", "input")
    text = display.pipeline_mermaid(made)
    assert '["<b>say #quot;hi#quot; &lt;b&gt;</b><br/>Loud"]' in text
    check_picture(display.draw_pipeline(made), "Loud")


def test_a_forest_plot_tells_each_difference():
    pairs = {
        "a minus b": Difference(0.1, 0.05, 0.15, 40, 0.01),
        "c minus b": Difference(0.0, -0.1, 0.1, 40, 0.9),
    }
    picture = plots.forest_plot(pairs, title="nDCG@10")
    check_picture(picture, "nDCG@10", *[f"{name} {pair}" for name, pair in pairs.items()])


def test_a_load_is_told_in_words():
    run = [Load("search", n, (0.1, 0.2, 0.3) * 4, 0, 2.0, 2.4) for n in (1, 8)]
    picture = load_plot({"one process": run}, weights=WEIGHTS, goal=0.5)
    check_picture(
        picture, "one process, by number of clients: 1: 6.0/s, median 200 ms", "8: 6.0/s",
        "The goal for 95 % is 500 ms", WEIGHTS,
    )  # fmt: skip


def test_the_exported_page_has_the_alt_text():
    picture = plots.forest_plot({"a": Difference(0.1, 0.05, 0.15, 40, 0.01)}, title="<b>Bold</b>")
    output = nbformat.v4.new_output("display_data", data=picture._repr_mimebundle_())
    cells = [nbformat.v4.new_code_cell("chart", outputs=[output])]
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    assert f'alt="{escape(picture.alt)}"' in page
    assert "No description" not in page


def test_html_tables_align_text_left_and_numbers_right():
    html = display.Table([{"name": "a", "n": 1}, {"name": "b", "n": None}])._repr_html_()
    assert html.count('<td style="text-align: left">') == 2
    assert html.count('<td style="text-align: right">') == 2


def test_a_table_cuts_as_text_and_escapes_as_html():
    table = display.Table([{"answer": "<script>alert(1)</script>" + "x" * 999}], "<i>Tiny</i>")
    assert max(map(len, repr(table).splitlines())) < 130
    html = table._repr_html_()
    assert "<script" not in html and "<i>" not in html and "&lt;script&gt;" in html
    assert "(no rows)" in repr(display.Table([]))
