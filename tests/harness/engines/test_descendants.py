"""A process and what came from it: found without a look at all others, zombies and strangers left out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from harness.engines import descendants
from harness.engines.descendants import tree, walked

# A child that starts a grandchild from another thread than its first, tells its id, and waits.
FAMILY = """
import subprocess, sys, threading
def start():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print(child.pid, flush=True)
    child.wait()
threading.Thread(target=start, daemon=True).start()
input()
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    child = subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    yield child.pid, grandchild
    for pid in (grandchild, child.pid):
        if psutil.pid_exists(pid):
            os.kill(pid, 9)
    child.wait()


@pytest.mark.parametrize("find", [tree, walked])
def test_all_generations_are_found_parents_first(find: object, family: tuple[int, int]) -> None:
    assert callable(find)
    assert find(family[0]) == list(family)
    members = find(os.getpid())
    assert members[0] == os.getpid()
    assert set(family) <= set(members)


def test_both_ways_agree(family: tuple[int, int]) -> None:
    assert sorted(tree(os.getpid())) == sorted(walked(os.getpid()))


@pytest.mark.parametrize("find", [tree, walked])
def test_a_zombie_and_one_that_is_gone_are_left_out(find: object) -> None:
    assert callable(find)
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still there
    assert child.pid not in find(os.getpid())
    assert find(child.pid) == []
    child.wait()
    assert find(child.pid) == []


def test_children_of_threads_that_ended_are_found() -> None:
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(subprocess.Popen(["sleep", "30"])))
    thread.start()
    thread.join()
    try:
        assert started[0].pid in tree(os.getpid())
    finally:
        started[0].kill()
        started[0].wait()


def test_where_the_kernel_keeps_no_children_all_are_looked_at(
    family: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descendants.Path, "exists", lambda path: False)
    assert tree(family[0]) == list(family)
