#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`penstock store`, from its first command to its last, on a cluster of a tiny model; what it says to
wrong input; and a tenant over its quota, which pays first.

    tests/store_test.py PENSTOCK

Standard library only.
"""

import json
import pathlib
import sys
import tempfile
import unittest
import urllib.request

import up_test as base
from up_test import MODEL, Up, await_true, free_port, run

SMALL = "{threads: 1, kv_bytes: 16MiB, sequences: 4}"
PROMPT = "the quick brown fox jumps over it " * 15  # 422 tokens: 13 blocks.
BLOCKS = 13
SECTOR = 4096


def ask(http, prompt, salt=None):
    body = {"model": MODEL.name, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    if salt is not None:
        body["cache_salt"] = salt
    request = urllib.request.Request(f"http://{http}/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=base.WAIT_S) as response:
        assert response.status == 200
        return json.loads(response.read())


class Store:
    """`penstock store` of one cluster."""

    def __init__(self, server):
        self.server = server

    def __call__(self, command, *args):
        return run("store", command, "--server", self.server, *args)

    def good(self, command, *args):
        done = self(command, *args)
        assert done.returncode == 0, f"{command} {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, command, *args):
        return [json.loads(line) for line in self.good(command, "--json", *args).splitlines()]

    def stat(self):
        return self.json("stat")[0]

    def copies(self, *args):
        return self.json("ls", *args)


class StoreTest(unittest.TestCase):
    def setUp(self):
        self.up = Up(f"model: {MODEL}\nprefill: {SMALL}\ndecode: {SMALL}\n"
                     "kvstore: {host_bytes: 16MiB, disk: d, disk_bytes: 320MiB}\n")
        self.addCleanup(self.up.__exit__)
        self.ready = self.up.wait_ready()
        self.store = Store(self.ready["grpc"])

    def fails(self, code, want, *command):
        done = self.store(*command)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertRegex(done.stderr, want)
        self.assertEqual(done.stdout, "")

    def test_every_command(self):
        store = self.store
        self.assertRegex(store.good("ls"), r"(?m)\ANAME +NODE +WHERE .*\n0 copies, 0 B\n\Z")
        self.assertEqual(store.stat()["copies"], 0)
        self.assertEqual(store.stat()["tenants"], [])
        ask(self.ready["http"], PROMPT)
        await_true("all are in both tiers", lambda: [t["copies"] for t in store.stat()["tiers"]] == [BLOCKS] * 2)
        self.ls()
        self.pin_and_flush()
        self.rm()
        self.verify()
        self.assertEqual(store.good("rm", "--all"), f"kvstore-1: {BLOCKS - 2} copies removed\n")
        self.assertEqual(store.copies(), [])
        self.assertEqual(store.stat()["copies"], 0)
        # The way the cluster's processes speak of it.
        self.up.wait_line("store node joined store=kvstore-1")
        self.assertEqual(self.up.lines_of("worker joined .*kvstore-1"), 0)

    def ls(self):
        store, copies = self.store, self.store.copies()
        names = [copy["name"] for copy in copies]
        self.assertEqual(len(set(names)), BLOCKS)
        self.assertEqual(names, sorted(names))
        for copy in copies:
            self.assertRegex(copy["name"], r"\A[0-9a-f]{32}\Z")
            self.assertEqual(copy["tiers"], ["host", "disk"])
            self.assertEqual((copy["node"], copy["pinned"], copy["codec"], copy["tenant"]),
                             ("kvstore-1", False, "raw", "00000000"))
        # Each but the first block names the one before.
        chain = {copy.get("parent"): copy for copy in copies}
        at, length = chain.get(None), 0
        while at is not None:
            self.assertEqual(at["tokens_before"], 32 * length)
            at, length = chain.get(at["name"]), length + 1
        self.assertEqual(length, BLOCKS)
        text = store.good("ls", "--tier", "disk", "--most", 4)
        self.assertEqual(len(text.splitlines()), 6)
        self.assertRegex(text, r"\n4 copies, ")
        self.assertEqual(len(store.copies("--prefix", names[3])), 1)
        self.assertEqual(store.copies("--tier", "remote"), [])
        self.assertEqual(store.copies("--pinned"), [])
        self.assertEqual(len(store.copies("--prompt-file", self.prompt(PROMPT), "--model", MODEL)), BLOCKS)
        # Of another tenant none are.
        self.assertEqual(store.copies("--prompt-file", self.prompt(PROMPT), "--model", MODEL, "--tenant", "t"), [])
        self.assertRegex(store.good("stat"), rf"(?m)^host +reuse-density +- +{BLOCKS} ")

    def prompt(self, text):
        path = self.up.root / "prompt.txt"
        path.write_text(text, encoding="utf-8")
        return path

    def pin_and_flush(self):
        store = self.store
        name = store.copies()[5]["name"]
        self.assertEqual(store.good("pin", name[:20]), "kvstore-1: 1 copy pinned\n")
        self.assertEqual(store.json("pin", "--prompt-file", self.prompt(PROMPT[:34 * 5]), "--model", MODEL),
                         [{"node": "kvstore-1", "pinned": 4}])
        pinned = {copy["name"] for copy in store.copies("--pinned")}
        self.assertIn(name, pinned)
        self.assertIn(len(pinned), (4, 5))
        self.assertEqual(store.stat()["copies_pinned"], len(pinned))
        self.assertRegex(store.good("flush"), r"\Akvstore-1: .* of host memory let go of\n\Z")
        self.assertEqual({copy["name"] for copy in store.copies("--tier", "host")}, pinned)
        self.assertEqual(len(store.copies("--tier", "disk")), BLOCKS)
        self.assertEqual(store.good("unpin", *pinned), f"kvstore-1: {len(pinned)} copies unpinned\n")
        store.good("flush")
        self.assertEqual(store.copies("--tier", "host"), [])

    def rm(self):
        store, name = self.store, self.store.copies()[0]["name"]
        self.assertEqual(store.good("rm", name), "kvstore-1: 1 copy removed\n")
        self.assertEqual(len(store.copies()), BLOCKS - 1)
        self.fails(1, f"no copy has a name that begins with {name}", "rm", name)

    def verify(self):
        store = self.store
        self.assertRegex(store.good("verify"),
                         rf"\Akvstore-1: {BLOCKS - 1} copies checked, .* read; none damaged\n\Z")
        self.damage({copy["name"] for copy in store.copies()})
        done = store("verify", "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout)["damaged"]), (1, 1), done.stdout + done.stderr)
        self.assertEqual(len(store.copies()), BLOCKS - 2)
        self.assertRegex(store.good("verify"), "none damaged")

    def damage(self, names):
        """Flips a bit of the first record on disk (kvstore/disk/disk_format.h) of one of these copies."""
        for file in sorted((self.up.root / "d" / "kvstore-1").glob("*")):
            data, at = bytearray(file.read_bytes()), SECTOR
            while data[at:at + 4] == b"PKRC":
                space, chain = data[at + 24:at + 40], data[at + 40:at + 56]
                size = int.from_bytes(data[at + 64:at + 68], "little")
                if bytes(a ^ b for a, b in zip(space, chain)).hex() in names:
                    with open(file, "r+b") as segment:
                        segment.seek(at + SECTOR + size - 1)
                        segment.write(bytes([data[at + SECTOR + size - 1] ^ 1]))
                    return
                at += SECTOR + -(-size // SECTOR) * SECTOR
        self.fail("no record of a copy")

    def test_wrong_input(self):
        nobody = f"127.0.0.1:{free_port()}"
        for command in ("ls", "stat", "flush", "verify"):
            # No heading of a table that does not come.
            done = run("store", command, "--server", nobody)
            self.assertEqual((done.returncode, done.stdout), (1, ""), command)
            self.assertIn(f"no coordinator answers at {nobody}", done.stderr)
        self.fails(1, "no store node 'nobody'.*kvstore-1", "ls", "--node", "nobody")
        ask(self.ready["http"], PROMPT)
        await_true("copies are there", lambda: self.store.stat()["copies"] == BLOCKS)
        short = self.prompt("too short")
        for code, want, *command in (
                (1, "name copies, or a prompt", "pin"),
                (1, "name copies, or a prompt", "pin", "00", "--prompt-file", short, "--model", MODEL),
                (1, "prefix must be hex digits; byte 0 is none", "pin", "zz"),
                (1, "several names begin with ", "rm", ""),
                (1, "length of prefix must be from 0 to 32, got 33", "ls", "--prefix", "0" * 33),
                (1, "--all is all: name no copies beside it", "rm", "--all", "00"),
                (1, "fewer than a block: 32; whole blocks alone are kept", "pin", "--prompt-file", short,
                 "--model", MODEL),
                (1, "no node has a block of this prompt", "unpin", "--prompt-file",
                 self.prompt_of("another one " * 60), "--model", MODEL),
                (2, "--tier", "ls", "--tier", "gpu"),
                (2, "--most", "ls", "--most", "-1"),
        ):
            with self.subTest(command=command):
                self.fails(code, want, *command)
        for command in ("ls", "pin", "nothing"):
            self.assertEqual(run("store", command).returncode, 2)
        self.assertEqual(self.store.stat()["copies"], BLOCKS)
        self.assertEqual(self.store.stat()["copies_pinned"], 0)

    def prompt_of(self, text):
        path = self.up.root / "other.txt"
        path.write_text(text, encoding="utf-8")
        return path


class TenantsTest(unittest.TestCase):
    def test_a_tenant_over_its_quota_pays_first(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file, salt = pathlib.Path(folder.name) / "a.salt", "a salt that nobody may see"
        text = (f"model: {MODEL}\nprefill: {SMALL}\ndecode: {SMALL}\n"
                f"kvstore: {{host_bytes: 1MiB, policy: lru, tenants: [{{salt_file: {file}, bytes: 100KiB}},"
                " {bytes: 900KiB}]}\n")
        with Up(text) as up:
            self.assertEqual(up.process.wait(base.WAIT_S), 1)
            up.wait_line("salt_file '.*a.salt': No such file")
        file.touch(mode=0o600)
        file.write_text(salt + "\n", encoding="utf-8")
        with Up(text) as up:
            self.check(up, salt, run("store", "tenant", file).stdout.strip())
            self.assertEqual(up.end(), 0, "\n".join(up.lines))
            self.assertNotIn(salt, "\n".join(up.lines))
        file.chmod(0o644)
        self.assertIn("can be read by others", run("store", "tenant", file).stderr)

    def check(self, up, salt, number):
        ready = up.wait_ready()
        store, http = Store(ready["grpc"]), ready["http"]
        self.assertRegex(number, r"\A[0-9a-f]{8}\Z")
        self.assertEqual([t["tenant"] for t in store.stat()["tenants"]], ["00000000", number])

        def of(tenant):
            return sum(copy["tenant"] == tenant for copy in store.copies())

        def evicted():
            return store.stat()["tiers"][0]["evicted"]
        # Theirs are the oldest, and stay.
        for i in range(2):
            ask(http, f"number {i} " + PROMPT)
            await_true("they are kept", lambda i=i: of("00000000") == (i + 1) * BLOCKS)
        for i in range(20):
            ask(http, f"number {i} " + PROMPT, salt)
            await_true("they are kept, or others go", lambda i=i: of(number) == (i + 1) * BLOCKS or evicted() > 0)
            if evicted() > 0:
                break
        self.assertGreater(evicted(), 0)
        self.assertGreater(of(number), 0)
        self.assertEqual(of("00000000"), 2 * BLOCKS, "who is within its quota lost blocks")
        mine = {t["tenant"]: t for t in store.stat()["tenants"]}[number]
        self.assertEqual(mine["quota"], 100 << 10)
        self.assertGreater(mine["host_bytes"], 0)
        self.assertRegex(store.good("stat"), rf"(?m)^{number} +100 KiB ")
        told = {process["name"]: pathlib.Path(f"/proc/{process['pid']}/cmdline").read_bytes()
                for process in ready["processes"]}
        for line in told.values():
            self.assertNotIn(salt.encode(), line)
        self.assertIn(f"{number}={100 << 10}".encode(), told["kvstore-1"])


if __name__ == "__main__":
    base.PENSTOCK = sys.argv.pop(1)
    unittest.main(verbosity=2)
