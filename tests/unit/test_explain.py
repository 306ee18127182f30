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


def test_an_answer_of_a_thousand_brackets_says_nothing():
    assert said_by("[" * 5000) == ""
