#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`penstock quality` on SmolLM2 and this repository's licence: the table, the record, the picture.

    tests/quality_test.py PENSTOCK

Skips (77) where .cache/models has no model.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ROOT / "LICENSE"


def quality(program, *args):
    return subprocess.run([program, "quality", *map(str, args)], capture_output=True, text=True,
                          timeout=250, check=False)


def check_measured(program, folder):
    model = folder / "models" / MODEL.name
    model.parent.mkdir()
    model.symlink_to(MODEL)
    picture = folder / "quality.svg"
    args = [model, "--text", TEXT, "--prompt-tokens", 512, "--tokens", 96, "--needles", 2,
            "--needle-tokens", 512, "--codecs", "raw,planes,int8,kivi2", "--picture", picture]
    run = quality(program, *args)
    assert run.returncode == 0, run.stderr
    records = list(model.parent.glob("quality-*-f16.json"))
    assert len(records) == 1, records
    record = json.loads(records[0].read_text())
    assert records[0].name == f"quality-{record['weights'][:16]}-f16.json", records
    assert f"record: {records[0]}" in run.stdout, run.stdout
    assert record["prompt_tokens"] == 512 and record["scored_tokens"] == 96, record
    assert record["text_sha256"] == hashlib.sha256(TEXT.read_bytes()).hexdigest(), record
    assert record["needles"] == 2, record
    rows = {row["codec"]: row for row in record["codecs"]}
    assert list(rows) == ["raw", "planes", "int8", "kivi2"], rows
    for name in ("raw", "planes"):
        row = rows[name]
        assert row["mean_kl"] == row["max_kl"] == 0 and row["top1"] == 1, row
        assert row["perplexity"] == record["perplexity"], row
        assert row["needles_correct"] == record["needles_correct"], row
    assert 0 < rows["int8"]["mean_kl"] <= 0.005, rows
    assert rows["int8"]["mean_kl"] < rows["kivi2"]["mean_kl"], rows
    assert rows["kivi2"]["bits_per_value"] < 3.1 < 8 < rows["int8"]["bits_per_value"] < 8.5, rows
    assert 16 < rows["raw"]["bits_per_value"] < 16.1, rows
    for name in rows:
        assert any(line.startswith(name + " ") for line in run.stdout.splitlines()), run.stdout
    texts = [element.text or "" for element in xml.parse(picture).iter()]
    assert "int8" in texts and "raw: exact" in texts, texts

    # The measure's figures are the same each time; only speeds are of the day.
    again = folder / "again.json"
    run = quality(program, *args[:-2], "--json", again)
    assert run.returncode == 0, run.stderr
    other = json.loads(again.read_text())
    for one in (record, other):
        for row in one["codecs"]:
            del row["encode_gbps"], row["decode_gbps"]
    assert record == other, (record, other)


def check_int8_pages(program, folder):
    """What the pages themselves cost is said; they are kept raw, which costs nothing more."""
    args = [MODEL, "--text", TEXT, "--prompt-tokens", 512, "--tokens", 96, "--needles", 0, "--kv-dtype", "int8",
            "--activations", "f32", "--json", folder / "int8.json"]
    run = quality(program, *args)
    assert run.returncode == 0, run.stderr
    found = re.search(r"^int8 KV against f16 KV, .*: mean KL (\S+),", run.stdout, re.MULTILINE)
    assert found and 0 < float(found[1]) <= 0.005, run.stdout
    record = json.loads((folder / "int8.json").read_text())
    assert record["kv_dtype"] == "int8", record
    assert [(row["codec"], row["mean_kl"]) for row in record["codecs"]] == [("raw", 0)], record
    assert 8 * 66 / 64 < record["codecs"][0]["bits_per_value"] < 8.3, record


def check_refused(program, folder):
    small = folder / "small.txt"
    small.write_text("A text of few words. " * 20)
    cases = [
        (["--text", small], "tokens, 3585 are needed"),
        (["--text", folder / "none.txt"], "none.txt"),
        (["--text", TEXT, "--prompt-tokens", 100], "whole blocks of 32 tokens, got 100"),
        (["--text", TEXT, "--tokens", 0], "scored tokens must be from 1"),
        (["--text", TEXT, "--needles", -1], "needles must be from 0"),
        (["--text", TEXT, "--codecs", "kivi4", "--kv-dtype", "int8"],
         "codec kivi4 takes no int8 KV; raw does"),
        (["--text", TEXT, "--codecs", "zip"], "codec must be one of raw,"),
        (["--text", TEXT, "--prompt-tokens", 512, "--tokens", 64, "--needles", 0,
          "--codecs", "raw", "--json", folder / "none" / "x.json"], "cannot write"),
    ]
    for args, says in cases:
        run = quality(program, MODEL, *args)
        assert run.returncode == 1 and says in run.stderr, (args, run.stderr)


def main():
    program = sys.argv[1]
    if not MODEL.exists():
        print("no model in .cache/models; `penstock model get smollm2` fetches it")
        return 77
    with tempfile.TemporaryDirectory() as name:
        check_measured(program, pathlib.Path(name))
        check_int8_pages(program, pathlib.Path(name))
        check_refused(program, pathlib.Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
