"""The child process of ``llama_server``: serves until its standard input closes or its parent is gone."""

import json
import os
import select
import sys
from importlib import import_module
from typing import Any

PARENT_CHECK_S = 1.0


def main() -> None:
    """Load the model named in the first argument, print the server's address, serve."""
    parent = os.getppid()
    server = _server(json.loads(sys.argv[1]))
    print(server.listening_address, flush=True)
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], PARENT_CHECK_S)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    # not sys.exit: a decoding thread must not keep the process alive
    os._exit(0)


def _server(settings: dict[str, Any]) -> Any:
    # by name: the wheel is an extra, and has no types
    runtime: Any = import_module("xllamacpp")

    slots = int(settings["slots"])
    parameters = runtime.CommonParams()
    parameters.model.path = settings["model"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # the system picks a free one
    parameters.n_parallel = slots
    parameters.n_ctx = int(settings["context_tokens"]) * slots  # llama.cpp shares it out among the slots
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(settings["threads"])
    # Waiting threads sleep: on a shared machine, spinning ones take the cores from the work
    parameters.cpuparams.poll = parameters.cpuparams_batch.poll = 0
    parameters.cache_ram_mib = 0  # the slots' own caches do; the default would take up to 8 GiB
    parameters.ui = False
    return runtime.Server(parameters)


if __name__ == "__main__":
    main()
