#!/usr/bin/env python3
"""Make the virtual environment that every make target uses, and bring it up to date.

Needs the standard library only, and runs on any Python 3 so that an old one gets a sentence
instead of a syntax error. Does nothing (in a few milliseconds) when the environment was already
made from the same pyproject.toml and constraints.txt. A lock makes two calls at once safe.

    python3 tools/bootstrap.py --venv .venv --extras notebooks
"""

from __future__ import print_function

import argparse
import ast
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time

OLDEST, TOO_NEW = (3, 11), (3, 14)
SUITABLE = ("python3.13", "python3.12", "python3.11")
WANTED = "Python 3.11, 3.12 or 3.13"
RE_EXECUTED = "COOKBOOK_BOOTSTRAP_REEXECUTED"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# When it is set, the newest packages are installed and not the pinned ones, as in the nightly run.
NEWEST = "COOKBOOK_NEWEST"
MINIMUM_AGE = "3 days"  # a stolen release is mostly found within days
INPUTS = ("pyproject.toml", "constraints.txt", os.path.join("tools", "bootstrap.py"))


class SetupError(Exception):
    """What is wrong and what to do, in one sentence."""


def say(text):
    print(text, file=sys.stderr)
    sys.stderr.flush()


def suitable(version):
    return OLDEST <= tuple(version[:2]) < TOO_NEW


def version_of(command):
    """(major, minor) of a Python on the PATH, or None when it does not start."""
    try:
        text = subprocess.check_output(
            [command, "-c", "import sys; print('%d %d' % sys.version_info[:2])"],
            stderr=subprocess.DEVNULL,
        )
        major, minor = text.decode("ascii").split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def use_suitable_python(arguments, script=__file__):
    """Go on under a suitable Python: this one, or another one found on the PATH."""
    if suitable(sys.version_info):
        return
    for name in SUITABLE if RE_EXECUTED not in os.environ else ():
        path = shutil.which(name)
        version = version_of(path) if path else None
        if version and suitable(version):
            environment = dict(os.environ)
            environment[RE_EXECUTED] = "1"
            command = [path, os.path.abspath(script), *arguments]
            sys.exit(subprocess.call(command, env=environment))
    raise SetupError(
        "The cookbook needs %s and this is Python %d.%d (%s): install one of them, "
        "or name it with `make PYTHON=/path/to/python3.12 ...`."
        % (WANTED, sys.version_info[0], sys.version_info[1], sys.executable)
    )


def check_venv_module():
    """Debian and Ubuntu split venv and ensurepip off into a package of their own."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            "This Python (%s) cannot make virtual environments: install its venv module "
            "(on Debian and Ubuntu: `sudo apt install python%d.%d-venv`)."
            % (sys.executable, sys.version_info[0], sys.version_info[1])
        ) from None


@contextlib.contextmanager
def lock(path):
    """One bootstrap at a time; the lock goes with its process, however that ends."""
    handle = open(path, "w")
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and no parallel make either
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say("Waiting for another set-up of this environment to finish ...")
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        handle.close()


def python_in(venv):
    folder = "Scripts" if os.name == "nt" else "bin"
    return os.path.join(venv, folder, "python.exe" if os.name == "nt" else "python")


def fingerprint(venv):
    """Changes with all that decides what is installed, and with the folder's place."""
    digest = hashlib.sha256(os.path.abspath(venv).encode("utf-8"))
    if os.environ.get(NEWEST):
        digest.update(NEWEST.encode("utf-8"))
    for name in INPUTS:
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def stamp_path(venv, extras):
    return os.path.join(venv, ".installed-" + ("-".join(extras) or "base"))


def up_to_date(venv, extras, wanted):
    """Whether these extras, perhaps among others, were installed from today's files."""
    if not os.path.exists(python_in(venv)):
        return False
    for name in os.listdir(venv):
        if not name.startswith(".installed-") or name.endswith(".part"):
            continue
        with open(os.path.join(venv, name)) as file:
            if file.read().strip() == wanted and set(extras) <= set(name.split("-")[1:]):
                return True
    return False


def write_stamp(venv, extras, text):
    """Written last and moved into place, so that an interrupted set-up is done again."""
    path = stamp_path(venv, extras)
    with open(path + ".part", "w") as file:
        file.write(text + "\n")
    os.replace(path + ".part", path)


UV = "uv==0.13.9"
# How uv names what pip's configuration says; uv reads no file of pip's.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}


def uv_environment(venv):
    """Environment variables that make uv look for packages where pip would."""
    command = [python_in(venv), "-m", "pip", "config", "list"]
    settings = {}
    lines = subprocess.check_output(command, universal_newlines=True).splitlines()
    for line in sorted(lines, key=lambda line: not line.startswith(":env:")):  # before the files
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
    variables = {UV_NAMES[name]: value for name, value in settings.items() if name in UV_NAMES}
    if "UV_FIND_LINKS" in variables:
        variables["UV_FIND_LINKS"] = ",".join(variables["UV_FIND_LINKS"].split())
    # As pip does, take the best version of all indexes.
    variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    variables["VIRTUAL_ENV"] = venv
    return dict(variables, **os.environ)


def torch_pin():
    """The pinned version of PyTorch, or None."""
    with open(os.path.join(ROOT, "constraints.txt"), encoding="utf-8") as file:
        pins = dict(line.strip().split("==") for line in file if "==" in line)
    return pins.get("torch")


def install_packages(venv, extras):
    """Install with uv, in a third of pip's time; what uv says goes to the terminal."""
    pip = [python_in(venv), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.call([*pip, UV], cwd=ROOT):
        raise SetupError(
            "pip could not install uv, which installs the rest (its reason is above): check the "
            "network connection and run the same command again."
        )
    environment = uv_environment(venv)
    uv = [python_in(venv), "-m", "uv", "pip", "install"]
    version = torch_pin()
    if "finetune" in extras and version is not None and sys.platform.startswith("linux"):
        # Linux's usual build brings gigabytes of CUDA along. Its dependencies come with the rest.
        cpu = [*uv, "--quiet", "--no-deps", "torch==%s+cpu" % version]
        with open(os.devnull, "w") as nowhere:
            failed = subprocess.call(cpu, cwd=ROOT, env=environment, stderr=nowhere)
        if failed and subprocess.call([*cpu, "--torch-backend", "cpu"], cwd=ROOT, env=environment):
            say("There is no CPU build of PyTorch %s; the usual one will do." % version)
    target = ".[%s]" % ",".join(extras) if extras else "."
    if sys.dont_write_bytecode:  # or else Python keeps what it compiles, and only what is imported
        uv.append("--compile-bytecode")
    newest = os.environ.get(NEWEST)  # but for PyTorch, whose own index tells no dates
    versions = ["--exclude-newer", MINIMUM_AGE] if newest else ["-c", "constraints.txt"]
    rest = [*uv, *versions, "-e", target]
    if subprocess.call(rest, cwd=ROOT, env=environment):
        raise SetupError(
            "the packages could not be installed (uv's reason is above): check the network "
            "connection and run the same command again."
        )


def install(venv, extras):
    started = time.time()
    version = version_of(python_in(venv))
    # uv would keep what is there and suits: the newest packages go into a new environment.
    if os.environ.get(NEWEST) or version is None or not suitable(version):
        say("Making the virtual environment %s ..." % os.path.relpath(venv))
        subprocess.check_call([sys.executable, "-m", "venv", "--clear", venv])
    which = "newest" if os.environ.get(NEWEST) else "pinned"
    say("Installing the %s packages into %s ..." % (which, os.path.relpath(venv)))
    install_packages(venv, extras)
    say("The environment is ready (%.0f s)." % (time.time() - started))


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"))
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, comma-separated")
    options = parser.parse_args(arguments)
    venv = os.path.abspath(options.venv)
    extras = [extra for extra in options.extras.split(",") if extra]
    wanted = fingerprint(venv)
    if up_to_date(venv, extras, wanted):
        return
    use_suitable_python(arguments)
    check_venv_module()
    os.makedirs(os.path.dirname(venv), exist_ok=True)
    with lock(venv + ".lock"):
        if not up_to_date(venv, extras, wanted):  # the one we waited for may have done it
            install(venv, extras)
            write_stamp(venv, extras, wanted)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SetupError as error:
        say("Error: %s" % error)
        sys.exit(2)
    except KeyboardInterrupt:
        say("Stopped; the same command goes on from here.")
        sys.exit(130)
