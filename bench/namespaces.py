# SPDX-License-Identifier: Apache-2.0
"""Hosts on this machine: network namespaces joined by a bridge, for as long as a benchmark needs them."""

import os
import subprocess

import peers


def ip(*words, check=True):
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise peers.PeerError(f"ip {' '.join(map(str, words))}: {done.stderr.strip()} "
                              "(network namespaces need root)")


class Namespaces:
    """`names` and `addresses` of so many hosts; gone when the block is left."""

    def __init__(self, count):
        tag = f"ps{os.getpid() % 10000}"
        self.bridge = f"{tag}br"
        self.names = [f"{tag}h{i}" for i in range(count)]
        self.addresses = [f"10.213.7.{i + 1}" for i in range(count)]

    def __enter__(self):
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("link", "set", self.bridge, "up")
            for name, address in zip(self.names, self.addresses):
                ip("netns", "add", name)
                ip("link", "add", f"{name}o", "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", f"{name}o", "master", self.bridge, "up")
                ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            ip("netns", "del", name, check=False)
            ip("link", "del", f"{name}o", check=False)
        ip("link", "del", self.bridge, check=False)

    def within(self, host, *command):
        """The words that run `command` there."""
        return ["ip", "netns", "exec", self.names[host], *map(str, command)]
