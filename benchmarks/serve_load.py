"""`starflow serve` under load: throughput with closed clients, latency at fractions of it, and far more than it can take.

The server and the clients are processes of their own. First N clients ask one image each, again and again, and their throughput
is compared with that of one `Sampler` in a process of its own, full batches, measured before and after. Then requests arrive at
random (a Poisson process) at 25, 50, 100 and 200 % of that throughput, then at 1,000 %: what is refused (429) and what is
answered, and the server's memory before and after. At last the server is killed in mid-load and started again.

Example: python -m benchmarks.serve_load digits.bundle --seconds 20
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FRACTIONS = (0.25, 0.5, 1.0, 2.0, 10.0)
MOST_OPEN = 800  # connections of the clients at one time; the server takes 1,000

SAMPLING = """
import sys, time
from starflow.runtime import Sampler
with Sampler.open(sys.argv[1]) as sampler:
    batch = sampler.manifest.batch
    condition = ["a red apple"] * batch if sampler.manifest.text else [3] * batch
    sampler.sample(condition, guidance=2.0)
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < float(sys.argv[2]):
        sampler.sample(condition, guidance=2.0, seed=done)
        done += batch
    print(done / passed)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=8, help="clients that ask again and again (default: 8)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each measurement (default: 20)")
    parser.add_argument("--options", nargs="*", default=[], help="further options of `starflow serve`, without dashes")
    parser.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        port, mode, amount, seconds = arguments.client
        print(json.dumps(asyncio.run(load(int(port), mode, float(amount), float(seconds)))))
        return
    before = sampler_speed(arguments.bundle, arguments.seconds)
    server, port = start_server(arguments)
    run_clients(port, "closed", arguments.clients, 3.0)  # what is loaded at the first request
    closed = run_clients(port, "closed", arguments.clients, arguments.seconds)
    rows = []
    for fraction in FRACTIONS:
        memory = resident(server)
        row = run_clients(port, "open", fraction * closed["images_per_second"], arguments.seconds)
        rows.append({"load": fraction, **row, "mebibytes": [memory, resident(server)]})
    recovered = run_clients(port, "closed", 1, 3.0)
    killed = kill_and_restart(arguments, server, port, closed["images_per_second"])
    after = sampler_speed(arguments.bundle, arguments.seconds)
    sampler = statistics.mean((before, after))
    print(f"sampler alone: {before:.2f} and {after:.2f} images/s")
    print(
        f"{arguments.clients} clients: {closed['images_per_second']:.2f} images/s, {closed['images_per_second'] / sampler:.0%}"
    )
    for row in rows:
        print(describe(row))
    print(f"after it: one client, {recovered['answered']} answered, {recovered['refused']} refused; {killed}")


def describe(row: dict[str, Any]) -> str:
    """A line for one load."""
    times = ", ".join(f"p{each} {row[f'p{each}']:.0f} ms" for each in (50, 95, 99))
    memory = " -> ".join(f"{each:.0f}" for each in row["mebibytes"])
    return (
        f"{row['load']:.0%}: {row['asked']} asked, {row['answered']} answered, {row['refused']} refused, "
        f"{row['failed']} failed; {times}; memory {memory} MiB"
    )


def sampler_speed(bundle: Path, seconds: float) -> float:
    """Images a second of a sampler with full batches."""
    command = [sys.executable, "-c", SAMPLING, str(bundle), str(seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def start_server(arguments: argparse.Namespace, port: int = 0) -> tuple[subprocess.Popen, int]:
    """A server of the bundle, and its port."""
    words = [
        "serve",
        str(arguments.bundle),
        "--port",
        str(port),
        "--json",
        *(f"--{each}" for each in arguments.options),
    ]
    server = subprocess.Popen([sys.executable, "-m", "starflow.runtime", *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    return server, int(json.loads(server.stdout.readline())["url"].rpartition(":")[2])


def run_clients(port: int, mode: str, amount: float, seconds: float) -> dict[str, Any]:
    """Clients in a process of their own; see `load`."""
    words = ["-m", "benchmarks.serve_load", "-", "--client", str(port), mode, str(amount), str(seconds)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def resident(server: subprocess.Popen) -> float:
    """MiB of memory that the server takes."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def kill_and_restart(arguments: argparse.Namespace, server: subprocess.Popen, port: int, speed: float) -> str:
    """Kill the server while it is busy, start it at the same port, and ask it."""
    before = sorted(map(str, arguments.bundle.rglob("*")))
    words = ["-m", "benchmarks.serve_load", "-", "--client", str(port), "open", str(speed), "4"]
    clients = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    time.sleep(2)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    clients.wait()
    again, port = start_server(arguments, port)
    answered = run_clients(port, "closed", 1, 3.0)["answered"]
    again.terminate()
    again.wait()
    changed = sorted(map(str, arguments.bundle.rglob("*"))) != before
    return f"killed and started again: {answered} answered, bundle {'CHANGED' if changed else 'unchanged'}"


# The clients


async def load(port: int, mode: str, amount: float, seconds: float) -> dict[str, Any]:
    """`amount` clients that ask again and again (`closed`), or so many requests a second (`open`)."""
    statuses: list[tuple[int, float]] = []
    end = time.perf_counter() + seconds
    start = time.perf_counter()
    if mode == "closed":

        async def client() -> None:
            while time.perf_counter() < end:
                statuses.append(await ask(port))

        await asyncio.gather(*(client() for _ in range(int(amount))))
    else:
        waiting: set[asyncio.Task] = set()
        draw = random.Random(0)
        due = start
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(waiting) < MOST_OPEN:
                task = asyncio.create_task(ask(port))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
                task.add_done_callback(lambda done: statuses.append(done.result()))
            due += draw.expovariate(amount)
        while waiting:
            await asyncio.wait(set(waiting))
    passed = time.perf_counter() - start
    answered = sorted(1000 * took for status, took in statuses if status == 200)
    refused = sum(status == 429 for status, _ in statuses)

    def percentile(part: float) -> float:
        return answered[min(len(answered) - 1, int(part / 100 * len(answered)))] if answered else float("nan")

    return {
        "asked": len(statuses),
        "answered": len(answered),
        "refused": refused,
        "failed": len(statuses) - len(answered) - refused,
        "images_per_second": len(answered) / passed,
        **{f"p{part}": percentile(part) for part in (50, 95, 99)},
    }


async def ask(port: int) -> tuple[int, float]:
    """Ask for one image; the status, 0 if the connection broke, and the seconds it took."""
    start = time.perf_counter()
    body = json.dumps({"prompt": "3", "guidance": 2.0}).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        status = int(answer.split()[1]) if answer else 0
    except OSError:
        status = 0
    return status, time.perf_counter() - start


if __name__ == "__main__":
    main()
