"""`kill -9` at every system call that changes the disk, below the interpreter: a library that is loaded before the C library.

So nothing depends on our own count of operations: what the shim sees is what the process asks the system for.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hookbus.checkpoint import Files
from tests.checkpoint.builders import make_store
from tests.drills.children import in_child
from tests.drills.drill import Drill, Skipped
from tests.drills.faults import KILLED, CopyingFiles

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static long left = -1, seen = 0;    /* calls before the last one; -1: never */
static char below[4096];

void arm(long number, const char *directory) {
    strncpy(below, directory, sizeof below - 1);
    seen = 0;
    left = number;
}
long calls(void) { return seen; }

static int is_path(const char *path) { return below[0] && path && !strncmp(path, below, strlen(below)); }
static int is_file(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = below[0] ? readlink(link, path, sizeof path - 1) : -1;
    if (size < 0) return 0;
    path[size] = 0;
    return is_path(path);
}
static int is_last(void) { return ++seen && left > 0 && --left == 0; }

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRAP(name, concerned, parameters, arguments)            \
    int name parameters {                                       \
        REAL(name);                                             \
        if (concerned && is_last()) _exit(137);                 \
        return real arguments;                                  \
    }

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    if (is_file(descriptor) && is_last()) {                     /* a part of it arrives */
        real(descriptor, data, size / 2);
        _exit(137);
    }
    return real(descriptor, data, size);
}
WRAP(fsync, is_file(descriptor), (int descriptor), (descriptor))
WRAP(fdatasync, is_file(descriptor), (int descriptor), (descriptor))
WRAP(mkdir, is_path(path), (const char *path, mode_t mode), (path, mode))
WRAP(rmdir, is_path(path), (const char *path), (path))
WRAP(unlink, is_path(path), (const char *path), (path))
WRAP(rename, is_path(target), (const char *source, const char *target), (source, target))
WRAP(link, is_path(target), (const char *source, const char *target), (source, target))
WRAP(linkat, is_path(target), (int from, const char *source, int to, const char *target, int flags),
     (from, source, to, target, flags))
"""
"""Counts the calls that concern one directory, and ends the process at one of them."""


def build(directory: Path) -> Path:
    """Compile the shim.

    Raises:
        Skipped: this machine has no Linux or no compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        msg = "there is no C compiler here" if sys.platform == "linux" else "only Linux has LD_PRELOAD"
        raise Skipped(msg)
    source, shim = directory / "shim.c", directory / "shim.so"
    source.write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(shim), str(source), "-ldl"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if compiled.returncode:
        msg = f"{compiler} cannot build the shim: {compiled.stderr[:300]}"
        raise Skipped(msg)
    return shim


def cross_check(drill: Drill, seconds: float) -> None:
    """Have a fresh interpreter under the shim die at every call, and take over what it found; say so where that is impossible."""
    directory = drill.fresh()
    try:
        shim = build(directory)
    except Skipped as reason:
        drill.leave_out("through the real system calls", str(reason))
        return
    options = {"directory": str(directory), "shim": str(shim), "seconds": seconds}
    options |= {"is_long": drill.is_long, "is_broken": drill.is_broken}
    command = [sys.executable, "-m", "tests.drills.preload", json.dumps(options)]
    environment = os.environ | {"LD_PRELOAD": str(shim)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not drill.check(ended.returncode == 0, f"under the shim: ended with {ended.returncode}: {ended.stderr[-500:]}"):
        return
    found = json.loads(ended.stdout)
    drill.checked += found["checked"]
    drill.wrong += [f"under the shim: {problem}" for problem in found["wrong"]]
    drill.facts["system calls"] = found["facts"]
    drill.check(drill.is_broken or sum(map(int, found["facts"].values())) > 0, "the shim has seen no call")


def _die_at_every_call(drill: Drill, shim: ctypes.CDLL) -> None:
    from tests.drills.drill_01_kill_at_every_operation import SITUATIONS, prepared  # it imports this file
    from tests.drills.states import check_disk

    files: type[Files] = CopyingFiles if drill.is_broken else Files
    for title, situation in drill.within(SITUATIONS.items()):
        code, number = KILLED, 0
        while code == KILLED:
            number += 1
            work_dir = prepared(drill, situation.before)

            def act(work_dir: Path = work_dir, number: int = number) -> None:
                shim.arm(number, os.fsencode(work_dir))
                situation.act(make_store(work_dir, files()))  # noqa: B023  it runs at once
                shim.arm(-1, b"")

            ended = in_child(act)
            code = ended.code
            drill.check(code in (0, KILLED), f"{title}, call {number}: ended with {code}: {ended.error}")
            check_disk(drill, work_dir, situation.surviving, f"{title}, dead at call {number}")
            drill.drop(work_dir)
            if drill.is_broken and drill.wrong:
                return
        drill.facts[title] = number - 1


def _main(options: dict[str, Any]) -> None:
    shim = ctypes.CDLL(options.pop("shim"))
    shim.arm.argtypes = [ctypes.c_long, ctypes.c_char_p]
    drill = Drill(**options | {"directory": Path(options["directory"])})
    _die_at_every_call(drill, shim)
    facts = {title: number for title, number in drill.facts.items() if title != "cut_short"}
    print(json.dumps({"checked": drill.checked, "wrong": drill.wrong, "facts": facts}))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
