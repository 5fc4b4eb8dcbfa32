"""Every module imports where the functions of Unix are absent, as on Windows."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, os, pkgutil, sys
# what the project imports of others is theirs to make portable: it is imported before anything is hidden
import click, concurrent.futures, jinja2, joblib, matplotlib.figure, multiprocessing, numba, numpy, pandas, pydantic
import rich.console, rich.progress, safetensors.numpy, scipy.optimize, scipy.stats, subprocess, tempfile, threadpoolctl
import tomli_w, llvmlite.binding

for name in ("register_at_fork", "sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "getgid", "fork",
             "forkpty", "sysconf", "uname", "getloadavg", "killpg", "getpgid", "setsid", "chown", "fchmod", "fchown",
             "posix_fallocate", "posix_fadvise", "mkfifo", "statvfs", "nice", "wait3", "wait4"):
    delattr(os, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"):
    sys.modules[name] = None
failed = []
for top in ("qsim", "hwmodels"):
    package = importlib.import_module(top)
    names = [top, *(m.name for m in pkgutil.walk_packages(package.__path__, top + ".", onerror=failed.append))]
    for name in names:
        if name == "qsim.__main__":  # it runs the command
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    assert len(names) > 20, names
print("\\n".join(failed))
"""


def test_every_module_imports_without_the_functions_of_unix():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr[-2000:]
