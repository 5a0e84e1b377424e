"""Many people at the page at once: errors, latencies, memory.

python benchmarks/page_load.py --export=FOLDER --clients=8 --translations=1000
"""

import argparse
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file


def served(export: str) -> tuple[subprocess.Popen, str]:
    """The page as a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "eotjax.demo", f"--export={export}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return process, found.group()
    raise SystemExit("the page did not start")


def resident(process: subprocess.Popen) -> float:
    """MiB of memory that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--export", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--translations", type=int, default=1000)
    arguments = parser.parse_args()
    images = sorted(Path(arguments.export, "examples", "forward").glob("*.png"))
    process, address = served(arguments.export)
    seconds: list[float] = []
    failed: list[str] = []
    rest = iter(range(arguments.translations))
    lock = threading.Lock()

    def visit(number: int) -> None:
        client = Client(address, verbose=False)
        client.predict(handle_file(images[number % len(images)]), api_name="/see")
        while True:
            with lock:
                seed = next(rest, None)
            if seed is None:
                return
            start = time.monotonic()
            try:
                drawn = client.predict(
                    *("forward", 1, seed, 25, "ancestral", 1.0, 1.0, 0.0),
                    api_name="/draw",
                )
                assert len(drawn) == 1
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error}")
            seconds.append(time.monotonic() - start)

    visitors = [
        threading.Thread(target=visit, args=(number,))
        for number in range(arguments.clients)
    ]
    start, memory = time.monotonic(), []
    try:
        for visitor in visitors:
            visitor.start()
        while any(visitor.is_alive() for visitor in visitors):
            memory.append((len(seconds), resident(process)))
            time.sleep(2)
    finally:
        process.terminate()
    took = time.monotonic() - start
    print(
        f"{len(seconds)} translations from {arguments.clients} clients in {took:.0f} s"
    )
    print(f"{len(failed)} errors {sorted(set(failed))[:3]}")
    quantiles = np.quantile(seconds, [0.5, 0.95, 1])
    print("latency s: median {:.2f}, 95 % {:.2f}, largest {:.2f}".format(*quantiles))
    for done, held in memory[:: max(len(memory) // 10, 1)]:
        print(f"after {done:4d}: {held:.0f} MiB")


if __name__ == "__main__":
    main()
