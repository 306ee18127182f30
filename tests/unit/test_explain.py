"""Which errors are explained as an endpoint's."""

import httpx
import pytest

from nim_cookbook.errors import DataError, causes
from nim_cookbook.explain import explain, said_by

REQUEST = httpx.Request("GET", "http://127.0.0.1:9/v1/models")
AWAY = httpx.ConnectError("away", request=REQUEST)


def raised(how):
    """Return what reaches the notebook when an endpoint's error is handled in some way."""
    try:
        try:
            raise AWAY
        except httpx.ConnectError as error:
            how(error)
    except Exception as error:
        return error


def wrap(error):
    raise RuntimeError("the pipeline failed") from error


def replace(error):
    raise ValueError("mine") from None


def stumble(error):
    raise ValueError("mine")


def test_an_error_that_a_library_wrapped_is_the_endpoints():
    assert "127.0.0.1:9/v1/models cannot be reached" in explain(raised(wrap))
    assert [type(e) for e in causes(raised(wrap))] == [RuntimeError, httpx.ConnectError]


@pytest.mark.parametrize("how", [replace, stumble])
def test_the_readers_own_error_is_not(how):
    assert explain(raised(how)) is None


def test_errors_of_the_cookbook_keep_their_sentence():
    def project(error):
        raise RuntimeError("in a pipeline") from DataError("It is so.")

    assert explain(raised(project)) == "It is so."
    assert explain(DataError("It is so.")) is None


def client_of(response):
    response.raise_for_status()  # which a 202 passes
    return response.json()["data"]


def test_a_202_is_explained_where_a_client_stumbles_over_it():
    request = httpx.Request("POST", "https://integrate.api.nvidia.com/v1/embeddings")
    with pytest.raises(ValueError) as stumbled:
        client_of(httpx.Response(202, request=request))
    assert "v1/embeddings answered 202: the model is being started" in explain(stumbled.value)
    with pytest.raises(ValueError) as other:
        client_of(httpx.Response(200, request=request))
    assert explain(other.value) is None


def test_the_openai_clients_bare_text_is_no_result():
    with pytest.raises(AttributeError) as stumbled:
        "".choices  # noqa: B018
    assert "answered without a result: the model is being started" in explain(stumbled.value)
    with pytest.raises(AttributeError) as other:
        "".chioces  # noqa: B018
    assert explain(other.value) is None


def test_advice_is_for_the_host_that_answered():
    def said(url, status):
        request = httpx.Request("POST", url)
        error = httpx.HTTPStatusError(
            "no", request=request, response=httpx.Response(status, request=request)
        )
        return explain(error)

    # NVIDIA's hosts list dead models, so that their listing is no advice.
    assert "nim-cookbook probe" in said("https://integrate.api.nvidia.com/v1/embeddings", 404)
    assert "lists under /v1/models" in said("http://127.0.0.1:8000/v1/embeddings", 404)
    slow = "https://ai.api.nvidia.com/v1/retrieval/nvidia/a/reranking"
    timed_out = httpx.ReadTimeout("slow", request=httpx.Request("POST", slow))
    assert "run the cell again" in explain(timed_out)
    assert "connect()" not in explain(timed_out)


def test_an_answer_of_a_thousand_brackets_says_nothing():
    assert said_by("[" * 5000) == ""
