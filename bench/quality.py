#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How close the engine's answers are to exact arithmetic, beside llama.cpp's on the same file.

    ./dev bench quality [--json FILE] [--models NAME,...]

For every position of a text: the Kullback-Leibler divergence from the float64 reference's
distribution (tests/reference/), whether the most likely token is the same, and the perplexity.
Targets: mean KL at most 1.1 times llama.cpp's (the better of its flash-attention settings), and
perplexity within 1 % of the reference's; with float activations and float KV, logits within 2e-3.

The text is Newton's Opticks (1704, public domain) from Debian's package
golang-github-andybalholm-brotli-dev. Reference logits are kept in .cache/quality.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile

import peers

TEXT_PACKAGE = "golang-github-andybalholm-brotli-dev"
TEXT_FILE = "usr/share/gocode/src/github.com/andybalholm/brotli/testdata/Isaac.Newton-Opticks.txt"
TEXT_SKIP_BYTES = 20000  # Past the title pages.
TEXT_BYTES = 8000
CACHE = peers.ROOT / ".cache" / "quality"
# More than 512 tokens for gemma, so that its window of 512 lets go of some.
MODELS = {"smollm2": ("llama_reference.py", 1024), "gemma3-270m": ("gemma3_reference.py", 640)}
KL_RATIO_MAX = 1.1
PERPLEXITY_OFF_MAX = 0.01
LOGIT_OFF_MAX = 2e-3
CHUNK = 64  # Positions compared at a time.


def sample_text():
    """A file with the text, the same bytes every time."""
    path = CACHE / "text.txt"
    if path.exists():
        return path
    installed = pathlib.Path("/") / TEXT_FILE
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        if not installed.exists():
            peers.say(f"fetching the text from Debian's package {TEXT_PACKAGE}")
            log = CACHE / "text-log.txt"
            peers.run(["apt-get", "download", TEXT_PACKAGE], log, "apt-get download", cwd=folder)
            package = next(pathlib.Path(folder).glob("*.deb"))
            peers.run(["dpkg-deb", "-x", package, folder], log, "unpacking the package")
            installed = pathlib.Path(folder) / TEXT_FILE
        text = installed.read_bytes()[TEXT_SKIP_BYTES:TEXT_SKIP_BYTES + TEXT_BYTES]
    path.write_bytes(text)
    return path


def reference_logits(model, script, ids_file):
    """The cached float64 reference's logits of these ids."""
    script = peers.ROOT / "tests" / "reference" / script
    digest = hashlib.sha256(script.read_bytes() + ids_file.read_bytes())
    with open(model, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    path = CACHE / f"reference-{digest.hexdigest()[:16]}.f32"
    if not path.exists():
        peers.say(f"computing {model.name} in float64 (a minute)")
        part = path.with_suffix(".part")
        peers.run([sys.executable, script, model, "--tokens-file", ids_file, "--logits", part],
                  CACHE / "reference-log.txt", script.name)
        part.rename(path)
    return path


def open_logits(path, tokens):
    import numpy as np
    logits = np.memmap(path, dtype=np.float32, mode="r")
    if logits.size % tokens != 0:
        raise peers.PeerError(f"{path} has {logits.size} logits for {tokens} tokens")
    return logits.reshape(tokens, -1)


def log_softmax(logits):
    import numpy as np
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def compare(reference_path, path, ids):
    """Mean and largest KL, agreement, perplexity and largest difference of logits."""
    import numpy as np
    reference, logits = open_logits(reference_path, len(ids)), open_logits(path, len(ids))
    kl, same, surprise, off = [], [], [], 0.0
    for begin in range(0, len(ids), CHUNK):
        end = min(begin + CHUNK, len(ids))
        p, q = log_softmax(reference[begin:end]), log_softmax(logits[begin:end])
        kl.append((np.exp(p) * (p - q)).sum(axis=-1))
        same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        scored = min(end, len(ids) - 1) - begin  # The last position has no next token.
        surprise.append(-q[np.arange(scored), ids[begin + 1:begin + 1 + scored]])
        off = max(off, float(np.abs(reference[begin:end] - logits[begin:end]).max()))
    kl = np.concatenate(kl)
    return {"positions": len(ids), "mean_kl": float(kl.mean()), "max_kl": float(kl.max()),
            "top1": float(np.concatenate(same).mean()),
            "perplexity": float(np.exp(np.concatenate(surprise).mean())), "logit_off": off}


def tokenize(model, probe, text, count, ids_file, program):
    """Ids of the text, on which both tokenizers must agree; the first `count` go to ids_file."""
    ours = peers.engine_bench(["tokenize", "--model", model, "--text-file", text], program)["tokens"]
    probe.ask_probe(f"tokenize {text} {ids_file}")
    theirs = [int(line) for line in ids_file.read_text().split()]
    if ours != theirs:
        at = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]),
                  min(len(ours), len(theirs)))
        raise peers.PeerError(f"{model.name}: tokenizers disagree at token {at}: "
                              f"ours {ours[at:at + 3]}, llama.cpp's {theirs[at:at + 3]}")
    if len(ours) < count:
        raise peers.PeerError(f"the text has {len(ours)} tokens, {count} are needed")
    ids_file.write_text("".join(f"{token}\n" for token in ours[:count]))
    return ours[:count]


def measure_model(name, llama, threads, program, folder):
    """Rows of one model, the reference's first."""
    model, (script, count) = peers.find_model(name), MODELS[name]
    ids_file, out = folder / f"{name}.ids", folder / "logits.f32"
    rows = []
    for flash_attention in (0, 1):
        with peers.Worker([llama.probe, model, threads, flash_attention, count + 8],
                          "llama_probe") as probe:
            if not rows:
                ids = tokenize(model, probe, sample_text(), count, ids_file, program)
                reference = reference_logits(model, script, ids_file)
                rows.append({"who": "float64", **compare(reference, reference, ids)})
            probe.ask_probe(f"logits {ids_file} {out}")
        rows.append({"who": f"llama.cpp -fa {flash_attention}", **compare(reference, out, ids)})
    for who, flags in (("penstock", []),
                       ("penstock f32", ["--activations", "f32", "--kv-dtype", "f32"])):
        peers.engine_bench(["logits", "--model", model, "--threads", threads, "--tokens-file",
                            ids_file, "--out", out, *flags], program)
        rows.append({"who": who, **compare(reference, out, ids)})
    out.unlink()
    return [{"model": name, **row} for row in rows]


def verdicts(rows):
    """(what, value, target, met) of one model's rows."""
    row = {r["who"]: r for r in rows}
    best = min(row[f"llama.cpp -fa {fa}"]["mean_kl"] for fa in (0, 1))
    ratio = row["penstock"]["mean_kl"] / best
    off = row["penstock"]["perplexity"] / row["float64"]["perplexity"] - 1
    logits = row["penstock f32"]["logit_off"]
    return [("mean KL / llama.cpp's", ratio, KL_RATIO_MAX, ratio <= KL_RATIO_MAX),
            ("perplexity / float64 - 1", off, PERPLEXITY_OFF_MAX, abs(off) <= PERPLEXITY_OFF_MAX),
            ("f32: largest logit off by", logits, LOGIT_OFF_MAX, logits <= LOGIT_OFF_MAX)]


def print_rows(rows):
    print(f"{'model':12} {'arithmetic':16} {'positions':>9} {'mean KL':>10} {'max KL':>10} "
          f"{'top-1':>7} {'perplexity':>10} {'logits off':>10}")
    for r in rows:
        print(f"{r['model']:12} {r['who']:16} {r['positions']:9} {r['mean_kl']:10.3e} "
              f"{r['max_kl']:10.3e} {r['top1']:7.2%} {r['perplexity']:10.4f} {r['logit_off']:10.3e}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, prog="./dev bench quality",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the rows and verdicts there")
    parser.add_argument("--models", default=",".join(MODELS), metavar="NAME,...")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", metavar="FILE", help="another engine_bench than build/bench's")
    args = parser.parse_args()
    for name in args.models.split(","):
        if name not in MODELS:
            parser.error(f"no model {name!r}; there are {', '.join(MODELS)}")
    return args


def main():
    args = parse_args()
    results = []
    folder = CACHE / "run"
    try:
        llama = peers.LlamaCpp()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in args.models.split(","):
            rows = measure_model(name, llama, args.threads, args.program, folder)
            print_rows(rows)
            checks = verdicts(rows)
            for what, value, target, met in checks:
                print(f"  {'met   ' if met else 'MISSED'} {what}: {value:.4g}, target {target:g}")
            print(flush=True)
            results.append({"model": name, "rows": rows,
                            "targets": [{"what": what, "value": value, "target": target, "met": met}
                                        for what, value, target, met in checks]})
    except peers.PeerError as error:
        print(f"bench/quality.py: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0


def with_numpy():
    """Starts this script again where numpy and gguf are, unless they are here."""
    try:
        import gguf  # noqa: F401
        import numpy  # noqa: F401
    except ImportError:
        python = str(peers.reference_python())
        if os.path.realpath(sys.prefix) == os.path.realpath(pathlib.Path(python).parent.parent):
            raise peers.PeerError(f"{python} has no numpy and gguf: delete .cache/peers") from None
        os.execv(python, [python, *sys.argv])


if __name__ == "__main__":
    try:
        with_numpy()
    except peers.PeerError as failure:
        sys.exit(f"bench/quality.py: {failure}")
    sys.exit(main())
