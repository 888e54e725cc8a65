# SPDX-License-Identifier: Apache-2.0
"""What gpu-acceptance.sh thinks of times and answers. Standard library only."""

import roofline

# The share of the peak below which something is broken, not slow. Launches and a grid's tail cost calls below
# FLOOR_SECONDS too much of it; those are printed only.
FLOOR = 0.07
FLOOR_SECONDS = 20e-6
SHARE_MAX = 1.2  # Clocks beyond the data sheet's give some more than 1; a kernel that does nothing, far more.


def percent(share):
    return "-" if share is None else f"{100 * share:.1f} %"


def judge(work, measured, gpu):
    """A row of the report from gpu_bench's line about `work`; "fault" says what is wrong, or is None. Where
    nothing is known of the GPU (None), times are not judged."""
    cost, seconds = roofline.cost(work), measured["seconds"]
    row = {"name": work["name"], "seconds": seconds, "least_seconds": None, "share": None, "limit": None,
           "bytes": cost.bytes, "int8_ops": cost.int8_ops, "f32_ops": cost.f32_ops, "fault": None}
    counted = roofline.weights_bytes(work)
    if measured["weights_bytes"] != counted:
        row["fault"] = f"it reads {measured['weights_bytes']} bytes of weights, and the roofline counts {counted}"
    if gpu is None:
        return row
    row["least_seconds"], row["limit"] = cost.seconds(gpu), cost.limit(gpu)
    row["share"] = row["least_seconds"] / seconds
    if row["least_seconds"] >= FLOOR_SECONDS and row["share"] < FLOOR:
        row["fault"] = f"{seconds * 1e6:.0f} us, less than {FLOOR:.0%} of what {gpu.name} can"
    elif row["least_seconds"] >= FLOOR_SECONDS and row["share"] > SHARE_MAX:
        row["fault"] = f"{seconds * 1e6:.0f} us is less than the {row['least_seconds'] * 1e6:.0f} us that it must take"
    return row


def difference_of(first, second, where, there, alike=True):
    """Where two answers of `penstock generate --json` differ first, or None. Not `alike`: in what both say."""
    for i, (a, b) in enumerate(zip(first["tokens"], second["tokens"])):
        if a != b:
            return f"token {i} is {a} {where}, {b} {there}"
    for i, (a, b) in enumerate(zip(first["logprobs"], second["logprobs"])):
        if a != b:
            return f"log-probability of token {i} is {a['logprob']!r} {where}, {b['logprob']!r} {there}"
    for key in first.keys() | second.keys() if alike else first.keys() & second.keys():
        if key not in ("ttft_ms", "tokens_per_s") and first.get(key) != second.get(key):
            return f"{key} is {first.get(key)!r:.80} {where}, {second.get(key)!r:.80} {there}"
    return None


def distance_of(exact, fast):
    """How far apart two answers of `penstock generate --json --logprobs N` to one prompt are at most, in nats: by
    what both say of a token, as long as both had the same tokens before. And of how many log-probabilities."""
    apart, compared = 0.0, 0
    for a, b in zip(exact["logprobs"], fast["logprobs"]):
        of_b = {entry["token"]: entry["logprob"] for entry in b["top"]}
        for entry in a["top"]:
            if entry["token"] in of_b:
                apart = max(apart, abs(entry["logprob"] - of_b[entry["token"]]))
                compared += 1
        if a["token"] != b["token"]:
            break
    return apart, compared
