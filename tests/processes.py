# SPDX-License-Identifier: Apache-2.0
"""Processes of the program as the cluster tests have them, and waiting for what they do."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/golden/tiny/llama3"
WAIT_S = 60


def await_true(what, holds, wait_s=WAIT_S):
    """Looks again and again, until a deadline; what came of the last look."""
    deadline, never = time.monotonic() + wait_s, threading.Event()
    while not (result := holds()):
        assert time.monotonic() < deadline, f"not within {wait_s} s: {what}"
        never.wait(0.02)
    return result


class Process:
    """One that writes a ready file when it serves. Its log, standard error, is drained, and shown when
    something fails."""

    def __init__(self, folder, name, command, **popen):
        self.name = name
        self.ready_file = pathlib.Path(folder) / f"{name}-{random.getrandbits(64):x}.json"
        self.process = subprocess.Popen([*map(str, command), "--ready-file", self.ready_file],
                                        stderr=subprocess.PIPE, text=True, **popen)
        self.log = []
        self.drain = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.drain.start()

    def ready(self):
        """What it wrote."""
        await_true(f"{self.name} is ready: {''.join(self.log)}",
                   lambda: self.ready_file.exists() or self.process.poll() is not None)
        if not self.ready_file.exists():
            self.drain.join()
        assert self.ready_file.exists(), (self.name, self.process.returncode, self.log)
        return json.loads(self.ready_file.read_text())

    def end(self, how=signal.SIGTERM):
        """Its exit code."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(how)
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.drain.join()
            self.process.stderr.close()


def load_stubs(folder):
    """penstock.v1 as a Python package, made in that folder."""
    from grpc_tools import protoc
    protos = sorted(str(p) for p in (ROOT / "proto/penstock/v1").glob("*.proto"))
    include = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    code = protoc.main(["protoc", f"-I{ROOT}/proto", f"-I{include}", f"--python_out={folder}",
                        f"--grpc_python_out={folder}", *protos])
    assert code == 0, "protoc failed"
    sys.path.insert(0, str(folder))
