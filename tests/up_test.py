#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A cluster of a tiny model, from a deployment file to its end.

    tests/up_test.py PENSTOCK

Standard library only.
"""

import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.request

from processes import MODEL, ROOT, await_true

PENSTOCK = None
WAIT_S = 120

SMALL = "{count: 2, threads: 1, kv_bytes: 8MiB, sequences: 4}"


def run(*args, env=None):
    return subprocess.run([PENSTOCK, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=WAIT_S, env=env)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def gone(pid):
    """Whether a process ends in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], WAIT_S)[0])
    finally:
        os.close(fd)


class Up:
    """`penstock up` in a folder of its own, which is also where it keeps temporary files."""

    def __init__(self, text, *flags, stdin=subprocess.DEVNULL):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        self.temporary = self.root / "tmp"
        self.temporary.mkdir()
        self.file = self.root / "c.yaml"
        self.file.write_text(text, encoding="utf-8")
        self.ready_file = self.root / "ready.json"
        self.process = subprocess.Popen(
            [PENSTOCK, "up", self.file, "--ready-file", self.ready_file, *flags], stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=dict(os.environ, TMPDIR=str(self.temporary)))
        self.lines = []
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def wait_line(self, pattern, times=1):
        """Waits until a pattern was printed so often."""
        def there():
            return sum(bool(re.search(pattern, line)) for line in self.lines) >= times
        with self.changed:
            self.changed.wait_for(lambda: there() or self.closed, WAIT_S)
            assert there(), f"no {pattern!r} in\n" + "\n".join(self.lines)

    def wait_ready(self):
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT_S)
        line = self.process.stdout.readline() if ready else ""
        assert line.startswith("ready: "), f"{line!r}\n" + "\n".join(self.lines)
        return self.endpoints()

    def endpoints(self):
        return json.loads(self.ready_file.read_text(encoding="utf-8"))

    def pid_of(self, name):
        return {p["name"]: p["pid"] for p in self.endpoints()["processes"]}[name]

    def metric(self, name, metric, label=""):
        """The sum of a process's samples with that label."""
        address = {p["name"]: p["metrics"] for p in self.endpoints()["processes"]}[name]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=WAIT_S) as response:
            lines = response.read().decode().splitlines()
        found = (re.match(rf"{metric}(\{{.*\}})? (\S+)$", line) for line in lines)
        return sum(float(match[2]) for match in found if match and label in (match[1] or ""))

    def lines_of(self, pattern):
        """How many lines so far have that."""
        with self.changed:
            return sum(bool(re.search(pattern, line)) for line in self.lines)

    def end(self, signal_number=signal.SIGINT):
        """Its exit code."""
        self.process.send_signal(signal_number)
        return self.process.wait(WAIT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.thread.join()
        self.process.stdout.close()
        self.process.stderr.close()
        self.folder.cleanup()


def generate(server, prompt="abc"):
    done = run("generate", "--server", server, "--raw", "--json", "--temperature", "0", "--max-tokens", "4", prompt)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["tokens"]


class UpTest(unittest.TestCase):
    def test_starts_answers_restarts_and_ends(self):
        alone = run("generate", "--model", MODEL, "--raw", "--json", "--temperature", "0", "--max-tokens", "4", "abc")
        want = json.loads(alone.stdout)["tokens"]
        with Up(f"model: {MODEL}\nprefill: {SMALL}\ndecode: {SMALL}\n") as up:
            ready = up.wait_ready()
            names = [p["name"] for p in ready["processes"]]
            self.assertEqual(names, ["coordinator", "prefill-1", "prefill-2", "decode-1", "decode-2"])
            self.assertEqual(generate(ready["grpc"]), want)

            # Whoever dies is there again, under its name, and the coordinator where it was.
            for turn, name in enumerate(("prefill-1", "decode-2", "coordinator"), 1):
                before = up.pid_of(name)
                os.kill(before, signal.SIGKILL)
                up.wait_line(rf"^up +\| {name} is up again on ")
                up.wait_line(r"^up +\| the cluster is ready again", turn)
                self.assertNotEqual(up.pid_of(name), before)
                self.assertEqual(generate(up.endpoints()["grpc"]), want)
            self.assertEqual(up.endpoints()["grpc"], ready["grpc"])

            pids = [p["pid"] for p in up.endpoints()["processes"]]
            self.assertEqual(up.end(), 0, "\n".join(up.lines))
            for pid in pids:
                self.assertTrue(gone(pid))
            self.assertFalse(up.ready_file.exists())
            self.assertEqual(list(up.temporary.iterdir()), [])

    def check_pairs(self, up, *flags):
        """Doctor of a cluster that runs: every pair is there, with plausible figures."""
        doctor = run("doctor", up.file, *flags)
        self.assertEqual(doctor.returncode, 0, doctor.stdout + doctor.stderr)
        found = re.findall(r"^ok +pair (\S+) -> (\S+): (\S+), (\S+) GB/s verified, round trip (\d+) us$",
                           doctor.stdout, re.MULTILINE)
        self.assertEqual([pair[:2] for pair in found],
                         [(f"prefill-{p}", f"decode-{d}") for p in (1, 2) for d in (1, 2)], doctor.stdout)
        for _, _, transport, rate, _ in found:
            self.assertEqual(transport, "shm")
            self.assertGreater(float(rate), 0)
        self.assertRegex(doctor.stdout, r"ok +4 of 4 workers run and have their memory\n")
        return doctor.stdout

    def test_doctor_of_a_running_cluster(self):
        port, http = free_port(), free_port()
        text = f"model: {MODEL}\nprefill: {SMALL}\ndecode: {SMALL}\n"
        with Up(f"{text}ports: {{grpc: {port}, http: {http}}}\n") as up:
            server = up.wait_ready()["grpc"]
            out = self.check_pairs(up)
            for taken in (f"port {port} of the coordinator", f"port {http} of HTTP"):
                self.assertRegex(out, rf"ok +{taken} is taken by this cluster, which runs")
            pairs = json.loads(run("status", "--server", server, "--json").stdout)["pairs"]
            self.assertEqual(len(pairs), 4)
            for pair in pairs:
                self.assertGreater(pair["bytes_per_s"], 0)
                self.assertGreater(float(pair["round_trip"].rstrip("s")), 0)
            status = run("status", "--server", server).stdout
            self.assertRegex(status, r"(?m)^PAIR +STATE +TRANSPORT +GB/s +ROUND TRIP us$")
            self.assertRegex(status, r"(?m)^prefill-2 -> decode-1 +verified +shm +[0-9.e+]+ +\d+$")
            self.assertEqual(up.end(), 0, "\n".join(up.lines))
            after = run("doctor", up.file)
            self.assertEqual(after.returncode, 0, after.stdout)
            self.assertRegex(after.stdout, r"ok +pairs of workers are measured once the cluster runs: ask again then\n")
        with Up(text) as up:
            server = up.wait_ready()["grpc"]
            asked = run("doctor", up.file)
            self.assertIn("ask again then, with --server and the address that penstock up printed", asked.stdout)
            self.check_pairs(up, "--server", server)
            gone_server = run("doctor", up.file, "--server", f"127.0.0.1:{free_port()}")
            self.assertEqual(gone_server.returncode, 1)
            self.assertRegex(gone_server.stdout, r"fault +--server: no coordinator answers at 127.0.0.1:")

    def test_nothing_survives_sigkill(self):
        with Up(f"model: {MODEL}\nprefill: {SMALL}\ndecode: {SMALL}\n") as up:
            pids = [p["pid"] for p in up.wait_ready()["processes"]]
            up.end(signal.SIGKILL)
            for pid in pids:
                self.assertTrue(gone(pid))

    def test_a_part_of_the_hosts_ends_with_its_input(self):
        text = (f"model: {MODEL}\nhosts: {{a: 127.0.0.1, b: 127.0.0.2}}\nports: {{grpc: {free_port()}}}\n"
                "prefill: [{host: a}, {host: b}]\ndecode: [{host: a}, {host: b}]\n")
        with Up(text, "--only-hosts", "a", "--until-eof", stdin=subprocess.PIPE) as up:
            names = [p["name"] for p in up.wait_ready()["processes"]]
            self.assertEqual(names, ["coordinator", "prefill-1", "decode-1"])
            up.process.stdin.write("text is no end")
            up.process.stdin.close()
            self.assertEqual(up.process.wait(WAIT_S), 0, "\n".join(up.lines))
            up.wait_line("ends: standard input has ended")
        with Up(text, "--only-hosts", "b,c") as wrong:
            self.assertEqual(wrong.process.wait(WAIT_S), 1)
            wrong.wait_line("--only-hosts: no host 'c'; there are a, b")

    def test_a_store_node(self):
        # Slow enough that fetching pays.
        slow = ("--device", "paced", "--pace-prefill-tokens-per-s", "500")
        prompt = "the quick brown fox jumps over it " * 15  # 422 tokens: 13 blocks.
        with Up(f"model: {MODEL}\nprefill: {SMALL}\ndecode: {SMALL}\n"
                "kvstore: {host_bytes: 16MiB, disk: d, disk_bytes: 320MiB}\n", *slow) as up:
            ready = up.wait_ready()
            names = [p["name"] for p in ready["processes"]]
            self.assertEqual(names, ["coordinator", "kvstore-1", "prefill-1", "prefill-2", "decode-1", "decode-2"])
            self.assertEqual((up.root / "d/secret").stat().st_mode & 0o777, 0o600)
            secret = (up.root / "d/secret").read_text(encoding="utf-8")
            server = ready["grpc"]
            want = generate(server, prompt)

            def known():
                return [int(s.get("copies_known", 0)) for s in json.loads(
                    run("status", "--server", server, "--json").stdout).get("stores", [])]

            def fetched(tier):
                return sum(up.metric(name, "penstock_store_fetched_blocks_total", f'tier="{tier}"')
                           for name in names[2:])

            def kill(*whom):
                ready_again = up.lines_of(r"^up +\| the cluster is ready again")
                for name in whom:
                    os.kill(up.pid_of(name), signal.SIGKILL)
                return lambda: up.wait_line(r"^up +\| the cluster is ready again", ready_again + 1)

            for tier in ("host", "disk"):
                await_true(f"all 13 blocks in {tier}", lambda tier=tier: up.metric(
                    "kvstore-1", "penstock_kvstore_copies", f'tier="{tier}"') == 13)
            doctor = run("doctor", up.file, "--server", server)
            self.assertEqual(doctor.returncode, 0, doctor.stdout + doctor.stderr)
            self.assertRegex(doctor.stdout, r"(?m)^(ok|warning) +disk .*/d: 1 node takes 335.5 MB at most, .* are free; ")
            self.assertNotIn("store nodes need", doctor.stdout, "it runs, and has its memory")
            for tier in ("host", "disk"):
                self.assertRegex(doctor.stdout, rf"(?m)^ok +store kvstore-1, {tier}: \d+ copies, .* hits$")
            # Without it all goes on.
            again = kill("kvstore-1")
            self.assertEqual(generate(server, prompt), want)
            again()
            await_true("its copies are known again", lambda: known() == [13])
            # What nobody's pool has any more comes from its disk, and then from its memory.
            for tier in ("disk", "host"):
                kill(*names[2:])()
                self.assertEqual((fetched("disk"), fetched("host")), (0, 0))
                self.assertEqual(generate(server, prompt), want)
                # By the prefill worker, the decode worker, or both: who is first gets them from there.
                self.assertGreaterEqual(fetched(tier), 13, tier)
            self.assertEqual(fetched("disk"), 0, "memory has them all by now")
            self.assertEqual(up.end(), 0, "\n".join(up.lines))
            self.assertEqual(list(up.temporary.iterdir()), [])
            self.assertEqual((up.root / "d/secret").read_text(encoding="utf-8"), secret)
            self.assertNotIn(secret, "\n".join(up.lines))

        with Up(f"model: {MODEL}\nkvstore: {{disk: c.yaml/x}}\n") as wrong:
            self.assertEqual(wrong.process.wait(WAIT_S), 1)
            wrong.wait_line("cannot make .*/c.yaml/x: Not a directory")

    def test_a_gateway_of_its_own(self):
        with Up(f"model: {MODEL}\ngateway: 1\n") as up:
            ready = up.wait_ready()
            gateway = {p["name"]: p["grpc"] for p in ready["processes"]}["gateway-1"]
            self.assertEqual(ready["grpc"], gateway)
            self.assertEqual(len(generate(gateway)), 4)
            self.assertEqual(up.end(signal.SIGTERM), 0, "\n".join(up.lines))

    def test_a_taken_port_ends_it(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with Up(f"model: {MODEL}\nports: {{grpc: {port}}}\n") as up:
                self.assertEqual(up.process.wait(WAIT_S), 1)
                up.wait_line("coordinator ended before it was ready: exit code 1")
                up.wait_line(rf"\|.*127.0.0.1:{port}")
                self.assertFalse(up.ready_file.exists())
                doctor = run("doctor", up.file)
                self.assertEqual(doctor.returncode, 1)
                self.assertIn(f"port {port} of the coordinator: Address already in use", doctor.stdout)

    def test_a_wrong_file_lists_all_faults(self):
        with Up("modell: x\nprefill: none\npolicy: best\n") as up:
            self.assertEqual(up.process.wait(WAIT_S), 1)
            up.thread.join(WAIT_S)
            text = "\n".join(up.lines)
            for fault in (":1:1: unknown key \"modell\"; did you mean model?", ":1:1: model is missing",
                          ":2:10: prefill must be a whole number", ":3:9: policy must be one of"):
                self.assertIn(f"{up.file}{fault}", text)

    def test_a_missing_model_is_named_with_its_place(self):
        with Up("models:\n- {name: a, path: nowhere.gguf}\n- {name: b, path: smolm2}\n") as up:
            self.assertEqual(up.process.wait(WAIT_S), 1)
            up.thread.join(WAIT_S)
            self.assertIn(f"{up.file}:2:3: nowhere.gguf", "\n".join(up.lines))
            self.assertIn(f"{up.file}:3:3: smolm2", "\n".join(up.lines))

    def test_doctor_and_dry_run(self):
        with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
            file.write(f"model: {MODEL}\nprefill: {{kv_bytes: 900TB}}\n".encode())
            file.flush()
            doctor = run("doctor", file.name)
            self.assertEqual(doctor.returncode, 1, doctor.stderr)
            self.assertRegex(doctor.stdout, r"fault +prefill-1 \(line 2\): .* 858306884.8 MiB for KV")
            self.assertRegex(doctor.stdout, r"ok +transfer over shm: [0-9.]+ GB/s verified")
            self.assertRegex(doctor.stdout, r"ok +transfer over tcp: ")
            self.assertNotRegex(doctor.stdout, "store|disk")
            dry = run("up", file.name, "--dry-run")
            self.assertEqual(dry.returncode, 0)
            self.assertEqual(len(dry.stdout.splitlines()), 3)
            self.assertIn("--kv-bytes 900000000000000 ", dry.stdout)

    def test_doctor_of_store_nodes(self):
        with tempfile.TemporaryDirectory() as folder:
            file, secret = pathlib.Path(folder) / "c.yaml", pathlib.Path(folder) / "s"
            secret.write_text("x" * 16, encoding="utf-8")
            secret.chmod(0o644)

            def doctor(kvstore):
                file.write_text(f"model: {MODEL}\nsecret_file: s\nkvstore: {kvstore}\n", encoding="utf-8")
                done = run("doctor", file)
                return done.returncode, done.stdout

            code, out = doctor("{host_bytes: 900TB, disk: d, disk_bytes: 900TB}")
            self.assertEqual(code, 1, out)
            self.assertRegex(out, rf"fault +--secret-file '{secret}' can be read by others \(mode 644\): chmod 600 it")
            self.assertRegex(out, r"fault +store nodes need 900000.00 GB of memory, .* give a smaller host_bytes")
            self.assertRegex(out, rf"fault +disk {folder}/d: 1 node takes 900000.00 GB at most, .* a smaller disk_bytes")
            secret.chmod(0o600)
            code, out = doctor("{count: 2, host_bytes: 1MiB, disk: d, disk_bytes: 320MiB}")
            self.assertEqual(code, 0, out)
            self.assertRegex(out, r"ok +secret_file .*/s is there")
            self.assertRegex(out, r"ok +store nodes need 2.1 MB of memory")
            self.assertRegex(out, r"(ok|warning) +disk .*/d: 2 nodes take 671.1 MB at most")
            code, out = doctor("{disk: c.yaml/x}")
            self.assertEqual(code, 1, out)
            self.assertRegex(out, rf"fault +disk {file}/x: cannot make .*: Not a directory; choose another")
            self.assertEqual(sorted(os.listdir(folder)), ["c.yaml", "s"], "doctor leaves nothing behind")


if __name__ == "__main__":
    PENSTOCK = sys.argv.pop(1)
    unittest.main()
