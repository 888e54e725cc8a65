#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Asks a running cluster, and prints the answer as it comes:

    deploy/python/example.py 127.0.0.1:7070 "Why is the sky blue?"
"""

import sys

import grpc

from penstock_client import Client, retry_after


def main(address, prompt):
    with Client(address) as client:
        model = client.models()[0]
        ask = client.chat if model.chat else client.generate
        try:
            answer = ask([("user", prompt)] if model.chat else prompt, model=model.name,
                         max_tokens=200, timeout=60)
            for text in answer:
                print(text, end="", flush=True)
        except grpc.RpcError as error:
            pause = retry_after(error)
            hint = f"; try again in {pause} s" if pause is not None else ""
            print(f"{error.code().name}: {error.details()}{hint}", file=sys.stderr)
            return 1
        print(f"\n[{answer.usage.completion_tokens} tokens, {answer.usage.prompt_tokens} of the prompt, "
              f"{answer.usage.cached_tokens} of them cached; first after "
              f"{answer.usage.ttft.ToMilliseconds()} ms; seed {answer.seed}]", file=sys.stderr)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
