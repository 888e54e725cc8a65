#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""NIXL with its UCX backend; see pool.py."""

import base64

import pool
from nixl_cu12._api import nixl_agent, nixl_agent_config


def make_agent(name, address, size):
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    return agent, agent.register_memory([(address, size, 0, "pool")], "DRAM")


def make_server(_host, _memory, address, size):
    agent, registered = make_agent("server", address, size)
    metadata = base64.b64encode(agent.get_agent_metadata()).decode()
    return {"metadata": metadata, "address": address}, (agent, registered)


def make_walker(_host, peer, _memory, address, size, piece):
    agent, registered = make_agent("walker", address, size)
    name = agent.add_remote_agent(base64.b64decode(peer["metadata"]))

    def pieces(base):
        return [(base + at, piece, 0) for at in range(0, size, piece)]

    local = agent.prep_xfer_dlist("NIXL_INIT_AGENT", pieces(address), "DRAM")
    remote = agent.prep_xfer_dlist(name, pieces(peer["address"]), "DRAM")
    every = list(range(size // piece))

    def walk():
        handle = agent.make_prepped_xfer("READ", local, every, remote, every, b"")
        state = agent.transfer(handle)
        while state not in ("DONE", "ERR"):
            state = agent.check_xfer_state(handle)
        assert state == "DONE", state
        agent.release_xfer_handle(handle)

    walk.alive = registered
    return walk


pool.main(make_server, make_walker)
