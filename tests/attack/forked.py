"""One attempt in a forked child of a process that has imported everything: fast, apart from all others, and watched from outside.

A child may crash, hang, fill the memory or leave threads behind; the parent tells which, and goes on.
"""

import contextlib
import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

from starflow.runtime.plain.errors import StarflowError

ROOM = (
    4 * 2**30
)  # bytes of address space that an attempt may reserve beyond what the parent has: none needs a tenth of it
LONGEST = 50_000  # characters of what an attempt tells
WAITING = 6  # seconds by the clock for each second of processor time: other processes may want the processors, too

How = Literal["done", "refused", "raised", "memory", "abort", "hang"]


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        how: It returned; raised a StarflowError; raised something else; ran out of memory; died of a signal; or took too long,
            by its processor time or because it waited for something.
        told: What it returned, the message of the error, the traceback, or the name of the signal.
        peak: Resident bytes at most, with what the parent had when it forked.
        seconds: Of processor time.
        printed: What it wrote to stdout and stderr.
    """

    how: How
    told: str
    peak: int
    seconds: float
    printed: bytes


def attempt(do: Callable[[], str], seconds: float = 10.0, room: int | None = ROOM) -> Ended:
    """Call `do` in a child.

    Args:
        do: What is tried.
        seconds: Processor time after which it counts as a hang and is killed; `WAITING` times as much by the clock.
        room: Address space it may reserve beyond the present one, in bytes; None: any.
    """
    output = os.memfd_create("output")
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        _run(do, theirs, output, seconds, room)
    os.close(theirs)
    told = _read(ours, time.monotonic() + WAITING * seconds)
    os.close(ours)
    if told is None:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    printed = os.pread(output, 2**20, 0)
    os.close(output)
    peak, cpu = used.ru_maxrss * 1024, used.ru_utime + used.ru_stime
    if told is None:
        return Ended("hang", f"waited: took {WAITING * seconds:g} s, {cpu:.1f} s of the processor", peak, cpu, printed)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return Ended("hang", f"took more than {seconds:g} s of the processor", peak, cpu, printed)
    if os.WIFSIGNALED(status):
        return Ended("abort", signal.Signals(os.WTERMSIG(status)).name, peak, cpu, printed)
    if not told:
        return Ended("abort", f"exit status {os.waitstatus_to_exitcode(status)}", peak, cpu, printed)
    how, text = json.loads(told)
    return Ended(how, text, peak, cpu, printed)


def freeze() -> None:
    """Call in a parent before it forks many children, so that they do not copy its objects to count references."""
    gc.collect()
    gc.freeze()


def import_ahead(do: Callable[[], str]) -> None:
    """Import here what a child imported during an attempt, so that the next ones need not."""

    def imported() -> str:
        before = set(sys.modules)
        do()
        return "\n".join(name for name in sys.modules if name not in before)

    for name in attempt(imported, 120, None).told.splitlines():
        with contextlib.suppress(Exception):  # modules that others make up are no modules
            importlib.import_module(name)


def _run(do: Callable[[], str], pipe: int, output: int, seconds: float, room: int | None) -> NoReturn:
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), resource.getrlimit(resource.RLIMIT_CPU)[1]))
        if room is not None:
            most = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + room, most))
        how, told = _answer(do)
        if room is not None:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.write(pipe, json.dumps((how, told[-LONGEST:])).encode())
    finally:
        os._exit(0)


def _answer(do: Callable[[], str]) -> tuple[How, str]:
    try:
        return "done", do()
    except StarflowError as error:
        text = str(error)
        return ("memory" if _of_memory(text) else "refused"), text
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException as error:
        return ("memory" if _of_memory(str(error)) else "raised"), traceback.format_exc()


def _of_memory(text: str) -> bool:
    """Whether an allocation failed that no one had checked before."""
    return any(
        sign in text
        for sign in ("bad_alloc", "Unable to allocate", "can't allocate memory", "bad allocation", "not enough memory")
    )


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _read(pipe: int, end: float) -> bytes | None:
    """All that the child writes; None if it has not closed the pipe in time."""
    parts: list[bytes] = []
    while (left := end - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            part = os.read(pipe, 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None
