# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI as a process that answers requests, so that its runs can take turns with ours.

    openvino_worker.py MODEL THREADS ATTENTION_BACKEND(PA|SDPA)

A request is a line of JSON on stdin, {"prompt_tokens": N, "new_tokens": M}: a prompt of N random
token ids, never the same twice, so that no cache of prefixes can help. The answer is a line on
stdout: {"ttft_s": ..., "tpot_s": ...}, as its own PerfMetrics has them; the first one, {"ready": true},
says that the model is loaded. Runs in the Python that bench/peers.py made.
"""

import json
import sys

import numpy
import openvino
import openvino_genai


def generate(pipeline, generator, prompt_tokens, new_tokens):
    ids = generator.integers(0, 49152, size=(1, prompt_tokens), dtype=numpy.int64)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new_tokens
    config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    metrics = pipeline.generate(inputs, config).perf_metrics
    return {"ttft_s": metrics.get_ttft().mean / 1000,
            "tpot_s": metrics.get_tpot().mean / 1000 if new_tokens > 1 else None}


def main():
    answers = sys.stdout
    sys.stdout = sys.stderr  # The library prints there.
    model, threads, backend = sys.argv[1:]
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=int(threads),
                                          ATTENTION_BACKEND=backend)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    generator = numpy.random.default_rng(1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = generate(pipeline, generator, request["prompt_tokens"], request["new_tokens"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
