# SPDX-License-Identifier: Apache-2.0
"""A small client of a Penstock cluster, over gRPC.

    from penstock_client import Client
    client = Client("127.0.0.1:7070")
    for text in client.chat([("user", "Why is the sky blue?")], max_tokens=100):
        print(text, end="", flush=True)

Needs grpcio and grpcio-tools: what the messages are is compiled from proto/ when first used.
"""

import importlib
import os
import pathlib
import sys
import tempfile

import grpc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"


def _stubs():
    """penstock.v1 as modules: (common, inference, inference_grpc)."""
    from grpc_tools import protoc
    if "penstock.v1.inference_pb2_grpc" not in sys.modules:
        with tempfile.TemporaryDirectory() as folder:
            include = os.path.join(os.path.dirname(protoc.__file__), "_proto")
            files = [f"{PROTO}/penstock/v1/{name}.proto" for name in ("common", "inference")]
            if protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={folder}",
                            f"--grpc_python_out={folder}", *files]):
                raise RuntimeError(f"cannot compile the messages in {PROTO}")
            sys.path.insert(0, folder)
            try:
                importlib.import_module("penstock.v1.inference_pb2_grpc")
            finally:
                sys.path.remove(folder)
    return (importlib.import_module(f"penstock.v1.{name}")
            for name in ("common_pb2", "inference_pb2", "inference_pb2_grpc"))


class Answer:
    """A stream of text. After its end, and not before, the attributes below are set."""

    def __init__(self, call):
        self._call = call
        self.request_id = None
        self.seed = None
        self.tokens = []           # Of the first choice: ids.
        self.finish_reason = None  # "stop" or "length".
        self.usage = None          # penstock.v1.GenerateResponse.Usage

    def __iter__(self):
        for response in self._call:
            event = response.WhichOneof("event")
            if event == "started":
                self.request_id, self.seed = response.started.request_id, response.started.seed
            elif event == "delta" and response.delta.choice == 0:
                self.tokens += [token.token for token in response.delta.tokens]
                if response.delta.text:
                    yield response.delta.text
            elif event == "finished" and response.finished.choice == 0:
                self.finish_reason = {1: "stop", 2: "length"}.get(response.finished.reason)
            elif event == "usage":
                self.usage = response.usage

    def cancel(self):
        """All workers stop within a step."""
        self._call.cancel()


class Client:
    """`address` is a gateway's, or a coordinator's that serves. Errors are grpc.RpcError: code() and
    details() say what is wrong, retry_after(error) when to come again."""

    def __init__(self, address):
        self._common, self._messages, services = _stubs()
        self._channel = grpc.insecure_channel(address)
        self._stub = services.InferenceStub(self._channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._channel.close()

    def models(self):
        """Of each: name, context_tokens, ready, chat."""
        return list(self._stub.ListModels(self._messages.ListModelsRequest()).models)

    def tokenize(self, text, model="", special=False):
        return list(self._stub.Tokenize(
            self._messages.TokenizeRequest(model=model, text=text, special=special)).ids)

    def generate(self, prompt, model="", timeout=None, **options):
        """An Answer that goes on with `prompt`: a text, or a list of token ids. Options are those of
        penstock.v1.GenerateOptions and SamplingParams: max_tokens, stop, temperature, seed, ..."""
        request = self._messages.GenerateRequest(model=model, options=self._options(options))
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.tokens.ids.extend(prompt)
        return Answer(self._stub.Generate(request, timeout=timeout))

    def chat(self, messages, model="", timeout=None, **options):
        """Likewise, of (role, content) pairs through the model's chat template."""
        request = self._messages.ChatRequest(
            model=model, options=self._options(options),
            messages=[self._messages.ChatMessage(role=r, content=c) for r, c in messages])
        return Answer(self._stub.Chat(request, timeout=timeout))

    def _options(self, options):
        fields = self._common.SamplingParams.DESCRIPTOR.fields_by_name
        sampling = {name: options.pop(name) for name in list(options) if name in fields}
        return self._messages.GenerateOptions(sampling=self._common.SamplingParams(**sampling),
                                              **options)


def retry_after(error):
    """Seconds until it is worth trying again; None where the cluster does not say."""
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after-ms":
            return int(value) / 1000
    return None
