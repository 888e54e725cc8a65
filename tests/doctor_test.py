#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `penstock doctor` makes of a coordinator's answers that real clusters hardly give:

    tests/doctor_test.py PENSTOCK

The coordinator is played here. Needs grpcio and grpcio-tools; exits with 77 where they are missing.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import worker_pair_test as base

import grpc  # worker_pair_test has seen that it is there.


class DoctorTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.addCleanup(self.folder.cleanup)
        self.coordinator = base.make_coordinator()
        self.addCleanup(self.coordinator.stop)
        self.file = pathlib.Path(self.folder.name) / "c.yaml"
        self.file.write_text(json.dumps({
            "model": str(base.MODEL), "hosts": {"a": "127.0.0.1", "b": "127.0.0.2"}, "ports": {"grpc": 7070},
            "transfer": ["tcp"], "prefill": [{"host": "a"}], "decode": [{"host": "b"}]}), encoding="utf-8")

    def doctor(self):
        done = subprocess.run(
            [base.PENSTOCK, "doctor", self.file, "--host", "a", "--server", self.coordinator.address],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=base.WAIT_S, check=False)
        return done.returncode, done.stdout

    def test_each_pair_that_is_not_good_has_advice(self):
        status = self.coordinator.status
        status.workers.add(name="prefill-1")
        pair = status.pairs.add(prefill="prefill-1", decode="decode-1", transport="tcp")
        code, out = self.doctor()
        self.assertEqual(code, 0, out)
        self.assertRegex(out, "ok +pair prefill-1 -> decode-1: tcp, verified; it was too slow, or too busy")
        self.assertRegex(out, "warning +decode-1 has not joined it; see to penstock up on host b")
        for code, advice in ((grpc.StatusCode.UNAVAILABLE, "any port of 127.0.0.2 must be reachable from 127.0.0.1"),
                             (grpc.StatusCode.FAILED_PRECONDITION, "start both with the same program"),
                             (grpc.StatusCode.DATA_LOSS, "what it sends arrives changed"),
                             (grpc.StatusCode.ABORTED, "the log of prefill-1 says more")):
            pair.error.code, pair.error.message = code.value[0], "so it is"
            code, out = self.doctor()
            self.assertEqual(code, 1)
            self.assertRegex(out, rf"fault +pair prefill-1 -> decode-1: so it is; .*{advice}")

    def test_copies_with_a_loss_need_a_record(self):
        model = pathlib.Path(self.folder.name) / base.MODEL.name
        model.symlink_to(base.MODEL.resolve())
        self.file.write_text(json.dumps({"model": str(model), "kvstore": {"lossy": "int8", "max_kl": 0.005}}),
                             encoding="utf-8")

        def doctor():
            return subprocess.run([base.PENSTOCK, "doctor", self.file], stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=base.WAIT_S, check=False).stdout

        self.assertRegex(doctor(), "fault +copies by int8 need the quality record of model .* with f16 KV; "
                                   "`penstock quality .*` writes it")
        (model.parent / "quality-0123456789abcdef-bf16.json").write_text("{}", encoding="utf-8")
        self.assertIn("need the quality record", doctor(), "it is of another type of KV")
        (model.parent / "quality-0123456789abcdef-f16.json").write_text("{}", encoding="utf-8")
        self.assertIn("there are quality records beside the models, for copies by int8", doctor())

    def test_somebody_elses_cluster(self):
        self.coordinator.status.workers.add(name="x")
        code, out = self.doctor()
        self.assertEqual(code, 1)
        self.assertIn("has x, and no worker of this file; --server is that of another", out)

    def test_a_standby_names_its_leader(self):
        leader = base.make_coordinator()
        self.addCleanup(leader.stop)
        leader.status.pairs.add(prefill="prefill-1", decode="decode-1", transport="tcp", bytes_per_s=2.5e9,
                                round_trip={"nanos": 40_000})
        status = self.coordinator.status
        status.standby, status.leader = True, leader.address
        code, out = self.doctor()
        self.assertEqual(code, 0, out)
        self.assertIn(f"the cluster runs, its coordinator at {leader.address}", out)
        self.assertIn("pair prefill-1 -> decode-1: tcp, 2.5 GB/s verified, round trip 40 us", out)
        status.leader = ""
        code, out = self.doctor()
        self.assertEqual(code, 1)
        self.assertIn("stands by, and no leader is known", out)


if __name__ == "__main__":
    base.PENSTOCK = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as stubs:
        base.COMMON, base.WORKER, base.WORKER_GRPC, base.CLUSTER, base.CLUSTER_GRPC = base.load_stubs(stubs)
        unittest.main(verbosity=2)
