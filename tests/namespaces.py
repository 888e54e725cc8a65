# SPDX-License-Identifier: Apache-2.0
"""Hosts that are none: network namespaces of this machine, joined by a bridge in one of their own.

Needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and `ip`. Standard library only.
"""

import ctypes
import os
import shutil
import subprocess

CLONE_NEWNET = 0x40000000


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def why_not():
    """Why there can be no namespaces here; None: there can."""
    for program in ("ip", "ss", "tc"):
        if shutil.which(program) is None:
            return f"there is no program {program}; Debian's package iproute2 has it"
    try:
        with Network([]):
            return None
    except OSError as error:
        return f"this process may not make network namespaces: {error}"


class Network:
    """Hosts by their names, each an own network with an own address, in a block.

    However the block or this process ends, a process beside us kills what runs in the hosts and
    removes them.
    """

    def __init__(self, names):
        tag = f"pk{os.getpid():x}"
        self.switch = f"{tag}-switch"
        self.hosts = {name: f"{tag}-{name}" for name in names}
        self.addresses = {name: f"10.77.0.{i}" for i, name in enumerate(names, 1)}
        self.keeper = None

    def __enter__(self):
        spaces = [*self.hosts.values(), self.switch]
        # At the end of its input, which our own end is, too. In a session of its own: Ctrl-C and
        # the signals of whoever started us are for us alone.
        self.keeper = subprocess.Popen(
            ["sh", "-c", 'us=$1; shift; cat; for n in "$@"; do '
             'ip netns pids "$n" | grep -vx "$us" | xargs -r kill -9; ip netns del "$n"; done',
             "sh", str(os.getpid()), *spaces], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)
        try:
            for space in spaces:
                run("ip", "netns", "add", space)
                run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", self.switch, "link", "set", "bridge", "up")
            for name, space in self.hosts.items():
                run("ip", "link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", name, "netns",
                    self.switch)
                run("ip", "-n", self.switch, "link", "set", "dev", name, "master", "bridge", "up")
                run("ip", "-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
                run("ip", "-n", space, "link", "set", "dev", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.keeper.stdin.close()
        self.keeper.wait()

    def inside(self, name, *command):
        """The command as one that runs on that host."""
        return ["ip", "netns", "exec", self.hosts[name], *map(str, command)]

    def limit(self, name, rate):
        """From now on the host sends no faster than that, such as "80mbit"."""
        run("tc", "-n", self.hosts[name], "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst",
            "64kb", "latency", "500ms")

    def plug(self, name, state):
        """Pulls the host's cable at the switch ("down"), or plugs it in ("up")."""
        run("ip", "-n", self.switch, "link", "set", "dev", name, state)

    def interface(self, name, state):
        """The same at the host itself: with "down" its addresses cannot be reached from within, too."""
        run("ip", "-n", self.hosts[name], "link", "set", "dev", "eth0", state)

    def enter(self, name):
        """From now on this thread, and those it starts, are on that host."""
        with open(f"/run/netns/{self.hosts[name]}", "rb") as space:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(space.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def listening(self, name):
        """(address, port) of all that listens there for TCP."""
        lines = run(*self.inside(name, "ss", "-Hltn")).splitlines()
        # "[::ffff:10.77.0.1]:7070": IPv4 by a socket that could do both.
        return [tuple(line.split()[3].replace("[::ffff:", "").replace("]", "").rsplit(":", 1)) for line in lines]
