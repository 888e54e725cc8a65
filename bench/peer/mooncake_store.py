#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mooncake Store: blocks put and got by several clients at once, each in a thread with a store of its own.

    mooncake_store.py MASTER CLIENTS BLOCKS BLOCK_BYTES ROUNDS

A process of its own lends the memory, as our node does; the clients lend none. Prints {"put": [bytes per
second of each round], "get": [...]}, best of one call a block and calls of 16 blocks. What was got is
compared once; nothing is checksummed.
"""

import ctypes
import json
import mmap
import multiprocessing
import os
import sys
import threading
import time

from mooncake.store import MooncakeDistributedStore

BATCH = 16
STRIDE = 4096
LEASE_S = 1.0  # Of what was got, as the master was told: so long it is not removed.


def make_store(master, lent):
    store = MooncakeDistributedStore()
    status = store.setup("127.0.0.1", "P2PHANDSHAKE", lent, 64 << 20, "tcp", "", master)
    assert status == 0, f"setup: {status}"
    return store


def lend(master, size, pipe):
    store = make_store(master, size)
    pipe.send(True)
    pipe.recv()
    del store
    os._exit(0)


class Client:
    def __init__(self, master, first, count, size):
        self.store = make_store(master, 0)
        self.size, self.keys = size, [f"block-{i}" for i in range(first, first + count)]
        self.memory = mmap.mmap(-1, count * size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.fill()
        assert self.store.register_buffer(self.address, count * size) == 0

    def fill(self):
        for at in range(0, len(self.memory), STRIDE):
            self.memory[at] = self.byte(at)

    def byte(self, at):
        return (at // STRIDE) % 251

    def clear(self):
        ctypes.memset(self.address, 255, len(self.memory))

    def check(self):
        assert all(self.memory[at] == self.byte(at) for at in range(0, len(self.memory), STRIDE))

    def pieces(self, at_a_time):
        for i in range(0, len(self.keys), at_a_time):
            keys = self.keys[i:i + at_a_time]
            yield keys, [self.address + (i + k) * self.size for k in range(len(keys))], \
                [self.size] * len(keys)

    def put(self, at_a_time):
        for piece in self.pieces(at_a_time):
            assert not any(self.store.batch_put_from(*piece))

    def get(self, at_a_time):
        for piece in self.pieces(at_a_time):
            got = self.store.batch_get_into(*piece)
            assert all(n == self.size for n in got), f"get: {got}"


def all_of(clients, work):
    begin = time.perf_counter()
    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(len(c.memory) for c in clients) / (time.perf_counter() - begin)


def main():
    master, (count, blocks, size, rounds) = sys.argv[1], map(int, sys.argv[2:])
    ours, theirs = multiprocessing.Pipe()
    lender = multiprocessing.get_context("spawn").Process(
        target=lend, args=(master, blocks * size * 2, theirs))
    lender.start()
    ours.recv()
    clients = [Client(master, blocks * c // count, blocks * (c + 1) // count - blocks * c // count, size)
               for c in range(count)]
    result = {"put": [], "get": []}
    for turn in range(rounds + 1):
        best = {"put": 0, "get": 0}
        for at_a_time in (1, BATCH):
            time.sleep(2 * LEASE_S)
            clients[0].store.remove_all()  # A put of what is there would do nothing.
            best["put"] = max(best["put"], all_of(clients, lambda c, n=at_a_time: c.put(n)))
            for client in clients:
                client.clear()
            best["get"] = max(best["get"], all_of(clients, lambda c, n=at_a_time: c.get(n)))
            for client in clients:
                client.check()
        if turn > 0:  # Memory is touched.
            for name, rate in best.items():
                result[name].append(rate)
    print(json.dumps(result), flush=True)
    ours.send(True)
    lender.join(5)
    lender.kill()
    os._exit(0)  # Their own ends are not what is measured, and may crash.


if __name__ == "__main__":
    main()
