"""deploy/pipelines: current, without keys, and loaded through the allow-list alone."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from haystack.marshal import YamlMarshaller

from nim_cookbook.answering import MAX_TOKENS, TOP_K
from nim_cookbook.endpoints import Endpoint, Endpoints, thinking_fields
from nim_cookbook.errors import ConfigurationError
from nim_cookbook.models import ROLES
from rag_service import pipelines
from rag_service.pipelines import NAMES, Name, load, main, pipelines_dir

KEY = "nvapi-fake-key-for-tests"
VARIABLES = {"NVIDIA_API_KEY", "QDRANT_API_KEY"}


def endpoints(threshold: float | None = None) -> Endpoints:
    return Endpoints(
        "self-hosted",
        {
            role: Endpoint(
                role,
                f"http://{role}.test/v1",
                f"{role}-model",
                "NIM_API_KEY",
                "a model (self-hosted)",
                refusal_logit=threshold,
            )
            for role in ROLES
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "pipelines"
    shutil.copytree(pipelines_dir(), copied)
    return copied


def changed(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(pipelines_dir())]) == 0, capsys.readouterr().out


def test_a_file_that_is_not_current_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(folder, "ask", "top_k: 20", "top_k: 21")
    assert main(["--check", str(folder)]) == 1
    assert "ask.yaml is not current" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_no_key(name: Name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, KEY)
    main([str(tmp_path)])
    for path in (tmp_path / f"{name}.yaml", pipelines_dir() / f"{name}.yaml"):
        text = path.read_text(encoding="utf-8")
        assert KEY not in text
        assert "nvapi-" not in text
        assert set(re.findall(r"- (\w+_KEY)\b", text)) <= VARIABLES
        data = YamlMarshaller().unmarshal(text)
        keys = [
            component["init_parameters"]["api_key"]
            for component in data["components"].values()
            if "api_key" in component["init_parameters"]
        ]
        assert keys
        assert all(key["type"] == "env_var" for key in keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_pipeline_asks_the_endpoints_of_this_installation(
    name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_API_KEY", "not-needed")
    parts = load(name, endpoints()).to_dict()["components"]
    roles = {
        "ask": ROLES,
        "search": ("embedding", "reranking"),
        "rewrite": ("chat",),
        "indexing": ("embedding",),
    }[name]
    text = json.dumps(parts, default=str)
    assert set(re.findall(r"http://(\w+)\.test/v1", text)) == set(roles)
    assert "integrate.api.nvidia.com" not in text
    assert "NVIDIA_API_KEY" not in text


@pytest.mark.parametrize("budget", [0, 300])
def test_a_loaded_pipeline_lets_the_model_think_as_configured(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_API_KEY", "not-needed")
    api = endpoints()
    chat = replace(api.chat, thinking=budget, extra_body=thinking_fields(budget))
    roles = {"embedding": api.embedding, "reranking": api.reranking, "chat": chat}
    parts = load("ask", Endpoints("self-hosted", roles)).to_dict()["components"]
    options = parts["generator"]["init_parameters"]["generation_kwargs"]
    assert options["extra_body"] == thinking_fields(budget)
    assert options["max_tokens"] == MAX_TOKENS + budget


@pytest.mark.parametrize("threshold", [None, -3.25])
def test_the_reranking_models_threshold_is_used(
    threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_API_KEY", "not-needed")
    parts = load("ask", endpoints(threshold)).to_dict()["components"]
    assert parts["ranker"]["init_parameters"]["top_k"] == TOP_K
    condition = parts["router"]["init_parameters"]["routes"][0]["condition"]
    assert ("score >= -3.25" in condition) is (threshold is not None)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "haystack.components.builders.chat_prompt_builder.ChatPromptBuilder",
            "os.path.Anything",
            "allow",
        ),
        ("components:", "parts:", "components"),
        ("components:", "components: [", ""),
        ("type: haystack.components.routers", "type: haystack.components.nothing", ""),
    ],
)
def test_a_file_that_names_another_module_is_not_loaded(
    folder: Path, old: str, new: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_API_KEY", "not-needed")
    changed(folder, "ask", old, new)
    with pytest.raises(ConfigurationError, match=r"ask\.yaml cannot be loaded") as raised:
        load("ask", endpoints(), folder=folder)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


def test_our_own_module_is_needed_for_indexing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_API_KEY", "not-needed")
    monkeypatch.setattr(pipelines, "ALLOWED", [])
    with pytest.raises(ConfigurationError, match="nim_cookbook"):
        load("indexing", endpoints())


def test_without_files_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_PIPELINES", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"rag_service\.pipelines"):
        pipelines_dir()
