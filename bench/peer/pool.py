# SPDX-License-Identifier: Apache-2.0
"""What the walkers of peers' transfer libraries share: a pool with known bytes, and the two commands

    X_walk.py serve HOST POOL_MIB
        prints a line of JSON, which is PEER below, and serves its pool until its input ends
    X_walk.py walk HOST PEER POOL_MIB PIECE_KIB PASSES
        reads the pool in order, piece by piece, and prints {"bytes_per_s": of the best pass}
"""

import ctypes
import json
import mmap
import os
import sys
import time

STRIDE = 4096


def make_pool(size, filled):
    """The memory and its address; every page is there."""
    memory = mmap.mmap(-1, size)
    for at in range(0, size, STRIDE):
        memory[at] = (at // STRIDE) % 251 if filled else 255
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def check(memory):
    assert all(memory[at] == (at // STRIDE) % 251 for at in range(0, len(memory), STRIDE)), \
        "not the bytes that the other has"


def main(make_server, make_walker):
    """`make_server(host, memory, address, size)` returns PEER and what must stay alive;
    `make_walker(host, peer, memory, address, size, piece)` a callable that reads the pool once."""
    command, host = sys.argv[1:3]
    if command == "serve":
        size = int(sys.argv[3]) << 20
        memory, address = make_pool(size, True)
        peer, alive = make_server(host, memory, address, size)
        print(json.dumps(peer), flush=True)
        sys.stdin.read()
        del alive
    else:
        peer, size, piece = json.loads(sys.argv[3]), int(sys.argv[4]) << 20, int(sys.argv[5]) << 10
        memory, address = make_pool(size, False)
        walk, best = make_walker(host, peer, memory, address, size, piece), 0
        for _ in range(int(sys.argv[6])):
            begin = time.perf_counter()
            walk()
            best = max(best, size / (time.perf_counter() - begin))
        check(memory)
        print(json.dumps({"bytes_per_s": best}), flush=True)
    os._exit(0)  # Their own ends are not what is measured, and may crash.
