#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mooncake's transfer engine over TCP, the one of its protocols that needs no network card; see pool.py."""

import pool
from mooncake.engine import TransferEngine


def make_engine(host, address, size):
    engine = TransferEngine()
    assert engine.initialize(host, "P2PHANDSHAKE", "tcp", "") == 0
    assert engine.register_memory(address, size) == 0
    return engine


def make_server(host, _memory, address, size):
    engine = make_engine(host, address, size)
    return {"target": f"{host}:{engine.get_rpc_port()}", "address": address}, engine


def make_walker(host, peer, _memory, address, size, piece):
    engine = make_engine(host, address, size)
    at = range(0, size, piece)
    to, source = [address + i for i in at], [peer["address"] + i for i in at]

    def walk():
        assert engine.batch_transfer_sync_read(peer["target"], to, source, [piece] * len(to)) == 0

    return walk


pool.main(make_server, make_walker)
