"""`headway serve` as a process: when it is stopped, it answers what is in flight and ends quietly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from ports import free_port
from waiting import PATIENCE, wait_until

TEXTS = [f"The sailor steers boat {number} before noon." for number in range(256)]


@pytest.mark.drill  # a whole cluster for each signal
@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_the_command_drains_and_ends_with_one_line(stop_signal: signal.Signals, folders, tmp_path: Path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "headway.cli.main",
        "serve",
        str(folders["embeddings"]),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        wait_until(lambda: is_ready(url))
        answers: list[int] = []

        def ask() -> None:
            body = {"input": TEXTS}
            answers.append(
                httpx.post(f"{url}/v1/embeddings", json=body, timeout=PATIENCE, trust_env=False).status_code
            )

        asking = [threading.Thread(target=ask) for _ in range(6)]
        for thread in asking:
            thread.start()
        while "_total{path=" not in httpx.get(f"{url}/metrics", trust_env=False).text:
            time.sleep(0.005)
        # Ctrl-C reaches all processes of a terminal; a supervisor signals the one that it started.
        (os.killpg if stop_signal == signal.SIGINT else os.kill)(process.pid, stop_signal)
        out, err = process.communicate(timeout=PATIENCE)
        for thread in asking:
            thread.join()
    finally:
        process.kill()
    assert answers == [200] * 6
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "Stopped."


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
