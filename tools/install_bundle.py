#!/usr/bin/env python3
"""Install the cookbook from the folder that this file is in, with no network.

    ./install            into nim-rag-cookbook in your home folder
    ./install FOLDER     into FOLDER

`nim-cookbook bundle` has put it there, with bootstrap.py beside it. It makes an environment in
FOLDER/.venv, copies the notebooks beside it and the model weights into the cache folder, and may be
called again at any time: what is there stays.
"""

from __future__ import print_function

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig

import bootstrap
from bootstrap import SetupError, say

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(os.path.expanduser("~"), "nim-rag-cookbook")


def path_of(name):
    return os.path.join(HERE, *name.split("/"))


def check_machine(bundle, arguments):
    """Go on under the bundle's Python, on the bundle's kind of machine."""
    version = tuple(bundle["python"])
    bootstrap.OLDEST, bootstrap.TOO_NEW = version, (version[0], version[1] + 1)
    bootstrap.WANTED = "Python %d.%d, which this bundle was made with," % version
    bootstrap.SUITABLE = ("python%d.%d" % version,)
    bootstrap.use_suitable_python(arguments, os.path.abspath(__file__))
    bootstrap.check_venv_module()
    if sysconfig.get_platform() != bundle["platform"]:
        raise SetupError(
            "This bundle is for %s and this machine is %s: make one on a machine of that kind."
            % (bundle["platform"], sysconfig.get_platform())
        )


def check_files(bundle):
    """Read every file once: a stick that was pulled out too early is noticed here."""
    say("Checking %d files ..." % len(bundle["files"]))
    for name, wanted in bundle["files"].items():
        digest = hashlib.sha256()
        try:
            with open(path_of(name), "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        except (IOError, OSError):
            digest = hashlib.sha256()
        if digest.hexdigest() != wanted:
            raise SetupError(
                "%s is missing or damaged: copy the bundle again." % os.path.join(HERE, name)
            )


def install_packages(bundle, venv):
    """Install the pinned versions, from the bundle's wheels alone."""
    python = bootstrap.python_in(venv)
    if not os.path.exists(python):
        say("Making the virtual environment %s ..." % venv)
        subprocess.check_call([sys.executable, "-m", "venv", venv])
    say("Installing the packages (one to five minutes) ...")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    pip += ["--find-links", path_of("wheels"), "-c", path_of("constraints.txt")]
    everything = [*pip, "nim-rag-cookbook[%s]" % ",".join(bundle["extras"])]
    ours = [
        *pip,
        "--no-deps",
        "--force-reinstall",
        "nim-rag-cookbook",
    ]  # a newer one may be called so
    if subprocess.call(everything) or subprocess.call(ours):
        raise SetupError(
            "the packages could not be installed (pip's reason is above): remove %s and run the "
            "same command again." % venv
        )
    return python


def copy_missing(source, target):
    """Copy the files that are not there yet, each in one move; what is there may be a reader's."""
    for folder, _, names in os.walk(source):
        there = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(there, exist_ok=True)
        for name in names:
            if not os.path.exists(os.path.join(there, name)):
                part = os.path.join(there, ".%s.part" % name)
                shutil.copyfile(os.path.join(folder, name), part)
                os.replace(part, os.path.join(there, name))


def main(arguments):
    with open(path_of("bundle.json"), encoding="utf-8") as file:
        bundle = json.load(file)
    check_machine(bundle, arguments)
    target = os.path.abspath(arguments[0] if arguments else TARGET)
    check_files(bundle)
    os.makedirs(target, exist_ok=True)
    python = install_packages(bundle, os.path.join(target, ".venv"))
    copy_missing(path_of("notebooks"), os.path.join(target, "notebooks"))
    where = "from nim_cookbook.local import cache_dir; print(cache_dir())"
    cache = subprocess.check_output([python, "-c", where], universal_newlines=True).strip()
    say("Copying the model weights to %s ..." % cache)
    copy_missing(path_of("weights"), os.path.join(cache, "weights"))
    settings = os.path.join(target, ".env")
    if bundle["models"] != "default" and not os.path.exists(settings):
        with open(settings, "w") as file:
            file.write("COOKBOOK_MODELS=%s\n" % bundle["models"])
    status = subprocess.call([python, "-m", "cookbook_cli", "doctor", "--class"], cwd=target)
    if status == 0:
        command = os.path.join(os.path.dirname(python), "nim-cookbook")
        say("Now: cd %s && %s lab" % (target, os.path.relpath(command, target)))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (SetupError, EnvironmentError) as error:
        say("Error: %s" % error)
        sys.exit(2)
    except KeyboardInterrupt:
        say("Stopped; the same command goes on from here.")
        sys.exit(130)
