"""The commands of `nim-cookbook` and their options; the work is done in the modules beside it."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from cookbook_cli import version
from cookbook_cli.connection import Mode
from local_endpoints.faults import FAULTS
from local_endpoints.options import Like, Nim, WeightSet
from nim_cookbook.errors import ConfigurationError

app = typer.Typer(
    name="nim-cookbook",
    help="Run the recipes of the NIM RAG Cookbook, and the local endpoints behind them.",
    add_completion=False,
    pretty_exceptions_enable=False,  # an unexpected error keeps Python's own traceback
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Role = Literal["chat", "embedding", "reranking"]
Models = Annotated[
    WeightSet | None,
    typer.Option(help="Which local models answer. [default: COOKBOOK_MODELS, else default]"),
]
PortBase = Annotated[
    int | None,
    typer.Option(
        min=1024,
        max=65530,
        help="First of the ports: chat +0, embedding +1, reranking +2, catalog +3, Gradient +4, "
        "Notion +5. [default: 8000]",
    ),
]
Endpoints = Annotated[
    Mode | None,
    typer.Option(help="Where the endpoints are. [default: COOKBOOK_ENDPOINTS, else local]"),
]
Notebooks = Annotated[
    Path | None, typer.Option(help="Folder of the notebooks, when it is not found by itself.")
]


def _console() -> Console:
    """Return a console that is as wide as the terminal, and wide enough for the table in a log."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nim-cookbook {version()}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Run the recipes of the NIM RAG Cookbook, and the local endpoints behind them."""


@app.command()
def serve(
    port_base: PortBase = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to bind. On any but loopback every server demands the key: "
            "COOKBOOK_LOCAL_KEY, or else the throw-away key that `serve --env` prints."
        ),
    ] = "127.0.0.1",
    models: Models = None,
    chat_model: Annotated[
        Path | None, typer.Option(help="A GGUF file of yours in the place of the chat model.")
    ] = None,
    nim: Annotated[
        Nim,
        typer.Option(help="Protocol of the chat server: that of NIM LLM 1.x, or of 2.x (vLLM's)."),
    ] = "2",
    like: Annotated[
        Like,
        typer.Option(
            help="`hosted` gives the catalog the manners of NVIDIA's hosts: retired models are "
            "listed and answer 410, unknown paths and ids 404."
        ),
    ] = "nim",
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:ROLE[:CALLS]]",
            help="With `--like hosted`, what goes wrong, for calls of one role or all, for so many "
            f"calls or all: {', '.join(FAULTS)}. Can be repeated.",
        ),
    ] = None,
    env: Annotated[
        bool, typer.Option("--env", help="Print export lines for endpoints that already run.")
    ] = False,
) -> int:
    """Run the local endpoints in the foreground, until Ctrl-C.

    Examples:

        nim-cookbook serve

        nim-cookbook serve --port-base 9000 --models better

        nim-cookbook serve --chat-model ~/models/another.gguf

        nim-cookbook serve --like hosted --fault busy:chat:2 --fault reasoning

        eval "$(nim-cookbook serve --env)"
    """
    if env:
        from cookbook_cli.serve import export_lines, running

        typer.echo("\n".join(export_lines(running(port_base))))
        return 0
    from local_endpoints.options import ServeOptions, model_set
    from local_endpoints.server import main as serve_until_stopped
    from nim_cookbook import local

    _use_models(models)
    return serve_until_stopped(
        ServeOptions(
            host=host,
            port_base=local.port_base() if port_base is None else port_base,
            models=model_set(),
            chat_model=chat_model,
            nim=nim,
            like=like,
            faults=fault or (),
        )
    )


@app.command()
def run(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Numbers, such as 01 02. [default: all]")
    ] = None,
    endpoints: Endpoints = None,
    models: Models = None,
    port_base: PortBase = None,
    output: Annotated[Path, typer.Option(help="Folder for the executed notebooks.")] = Path(
        "executed"
    ),
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", help="File for the dated record of the run. [default: run.json in --output]"
        ),
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Also print what the recipes measured.")
    ] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Also store cleaned outputs in the notebooks.")
    ] = False,
    notebooks: Notebooks = None,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that one cell may take.")] = 600,
    jobs: Annotated[int, typer.Option(min=1, help="Recipes that run side by side.")] = 2,
) -> int:
    """Execute recipes from the first cell to the last, and check what they measured.

    Examples:

        nim-cookbook run

        nim-cookbook run 01 02

        nim-cookbook run 01 --endpoints hosted --json results.json
    """
    _need_jupyter()
    from cookbook_cli.run import run as run_recipes

    _use_models(models)
    _use_ports(port_base)
    return run_recipes(
        _console(),
        wanted=recipes or (),
        mode=endpoints,
        output=output,
        json_file=json_file,
        details=details,
        jobs=jobs,
        store=store,
        notebooks=notebooks,
        timeout=timeout,
    )


@app.command()
def ask(
    folder: Annotated[Path, typer.Argument(help="A folder of your files, or one file.")],
    question: Annotated[
        str | None,
        typer.Argument(
            help="The question, in quotation marks. [default: read from the terminal or a pipe]"
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, max=20, help="Chunks that the chat model sees. [default: 3]"),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            callback=_finite,
            help="Refuse when the best chunk's logit is below. [default: what the registry has "
            "for the reranking model that answers, else none]",
        ),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write each answer as one line of JSON.")
    ] = False,
    endpoints: Endpoints = None,
    models: Models = None,
    port_base: PortBase = None,
) -> int:
    """Answer questions over your own files, with sources: PDF, Markdown, HTML and plain text.

    The index is kept in the cache folder; the next time only files that changed are read again.

    Examples:

        nim-cookbook ask ~/papers "Which data set was used?"

        nim-cookbook ask ~/papers

        nim-cookbook ask ~/papers --json < questions.txt
    """
    from cookbook_cli.ask import ask as answer

    _use_models(models)
    _use_ports(port_base)
    return answer(
        _console(),
        folder,
        question=question,
        top_k=top_k,
        threshold=threshold,
        rebuild=rebuild,
        as_json=as_json,
        mode=endpoints,
    )


@app.command()
def sweep(
    folder: Annotated[Path, typer.Argument(help="A folder of your files.")],
    questions: Annotated[
        Path, typer.Argument(help="Your questions, one JSON object a line: docs/sweep.md.")
    ],
    test: Annotated[
        Path | None,
        typer.Option(
            help="Questions for the confirmation alone. [default: those of the split `test`, else "
            "every third one]"
        ),
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="What to try. [default: the packaged grid of 112 designs]")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Designs that the first table shows.")] = 10,
    answers: Annotated[
        int | None,
        typer.Option(min=0, help="Questions that each of the best designs answers. [default: 40]"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the winner's YAML files.")] = Path(
        "winner"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Write all results as one JSON object.")
    ] = False,
    endpoints: Endpoints = None,
    models: Models = None,
    port_base: PortBase = None,
) -> int:
    """Find the design of a RAG pipeline that suits your own files and questions.

    What was computed is kept in the cache folder: an interrupted sweep goes on where it was.

    Examples:

        nim-cookbook sweep ~/papers questions.jsonl

        nim-cookbook sweep ~/papers questions.jsonl --grid my-grid.toml --json > results.json
    """
    _need_measures()
    from cookbook_cli.sweep import sweep as race

    _use_models(models)
    _use_ports(port_base)
    return race(
        _console(),
        folder,
        questions,
        test=test,
        grid_file=grid,
        top=top,
        answers=answers,
        output=output,
        as_json=as_json,
        mode=endpoints,
    )


@app.command()
def doctor(
    endpoints: Endpoints = None,
    port_base: PortBase = None,
    for_class: Annotated[
        bool, typer.Option("--class", help="One line: ready, or not ready and what to do.")
    ] = False,
) -> int:
    """Tell what is installed, which weights are there, what answers, and what is missing.

    Examples:

        nim-cookbook doctor

        nim-cookbook doctor --endpoints hosted

        nim-cookbook doctor --class
    """
    from cookbook_cli.doctor import examine, in_one_line

    _use_ports(port_base)
    return in_one_line(endpoints) if for_class else examine(_console(), endpoints)


@app.command()
def probe(
    role: Annotated[Role | None, typer.Option(help="Ask models of this role only.")] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Enter what was proved into a checkout's models.toml."),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the dated findings.")
    ] = None,
) -> int:
    """Make the smallest real call to every model of the registry, and tell which are alive.

    Needs NVIDIA_API_KEY. The exit status is 0 when all default models are alive.

    Examples:

        nim-cookbook probe

        nim-cookbook probe --role reranking

        nim-cookbook probe --write --json probe.json
    """
    from cookbook_cli.probe import probe as ask_models

    return ask_models(_console(), role=role, write=write, json_file=json_file)


@app.command()
def fetch(
    models: Models = None,
    force: Annotated[
        bool, typer.Option("--force", help="Fetch them again, even if they are there.")
    ] = False,
) -> int:
    """Fetch the weights of the local models and check them, for working offline later.

    Examples:

        nim-cookbook fetch

        nim-cookbook fetch --models better
    """
    from cookbook_cli.fetch import fetch as fetch_weights
    from local_endpoints.options import model_set

    _use_models(models)
    return fetch_weights(model_set(), force, _console())


@app.command()
def new(
    title: Annotated[str, typer.Argument(help="The recipe's title, in quotation marks.")],
    notebooks: Notebooks = None,
) -> int:
    """Begin a recipe: a notebook that keeps the rules and runs, and its entry in recipes.toml.

    Examples:

        nim-cookbook new "Ask a table"
    """
    _need_jupyter()
    from cookbook_cli.new import new as begin

    return begin(_console(), title, notebooks)


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(help="Where to write it: a new folder.")],
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Numbers of the recipes that it must run. [default: all]"),
    ] = None,
    models: Models = None,
) -> int:
    """Write a folder from which others install with no network: packages, weights, notebooks.

    It is for this Python version and this kind of machine, and needs a clone.

    Examples:

        nim-cookbook bundle cookbook-bundle

        nim-cookbook bundle /media/stick/cookbook 00 01 02 03 --models small
    """
    from cookbook_cli.bundle import bundle as write_bundle
    from local_endpoints.options import model_set

    _use_models(models)
    return write_bundle(_console(), folder, recipes or (), model_set())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(
    context: typer.Context,
    endpoints: Endpoints = None,
    models: Models = None,
    port_base: PortBase = None,
    notebooks: Notebooks = None,
) -> int:
    """Open JupyterLab with the local endpoints running; other options go to JupyterLab.

    Examples:

        nim-cookbook lab

        nim-cookbook lab --no-browser --port 8888
    """
    from cookbook_cli.lab import lab as run_lab
    from cookbook_cli.recipes import find_notebooks

    _use_models(models)
    _use_ports(port_base)
    return run_lab(find_notebooks(notebooks), endpoints, context.args)


def _finite(number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter("a threshold is a finite number, such as -10.4.")
    return number


def _use_models(models: WeightSet | None) -> None:
    """Ask for a set of models, here and in the processes that are started."""
    from nim_cookbook import endpoints

    if models is not None:
        os.environ["COOKBOOK_MODELS"] = models
    endpoints.read_env_file()  # which may have COOKBOOK_MODELS too


def _use_ports(base: int | None) -> None:
    """Ask for a block of ports, here and in the processes that are started."""
    if base is not None:
        os.environ["COOKBOOK_PORT_BASE"] = str(base)


def _need_measures() -> None:
    if not all(map(importlib.util.find_spec, ("ranx", "scipy"))):
        raise ConfigurationError(
            "A sweep needs ranx and scipy: run `pip install 'nim-rag-cookbook[measure]'`."
        )


def _need_jupyter() -> None:
    missing = [m for m in ("nbclient", "nbformat", "ipykernel") if not importlib.util.find_spec(m)]
    if missing:
        raise ConfigurationError(
            f"Running recipes needs {', '.join(missing)}: run "
            "`pip install 'nim-rag-cookbook[notebooks]'`."
        )
