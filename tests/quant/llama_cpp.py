"""llama.cpp with one GGUF file, in a process of its own: what it loads it may crash on, and tests open no sockets.

    python llama_cpp.py FILE < {"ids": [...], "texts": [...]}

prints {"logprobs": [n, V] of the token after each of the ids, "tokenized": the ids of each text}.
"""

import json
import sys
import urllib.request

import xllamacpp


def main(file: str) -> None:
    asked = json.load(sys.stdin)
    server = xllamacpp.Server(_options(file))
    found = {
        "logprobs": [_next(server, asked["ids"][: n + 1]) for n in range(len(asked["ids"]))],
        "tokenized": [_post(server, "/tokenize", {"content": text})["tokens"] for text in asked["texts"]],
    }
    print(json.dumps(found))


def _options(file: str) -> xllamacpp.CommonParams:
    options = xllamacpp.CommonParams()
    options.model.path = file
    options.n_ctx, options.cpuparams.n_threads, options.n_gpu_layers = 256, 1, 0
    options.warmup = options.fit_params = False
    return options


def _next(server: xllamacpp.Server, ids: list[int]) -> list[float]:
    """Log-probabilities before sampling. What is sampled is always one token of plain text: none are told otherwise."""
    plain = _post(server, "/tokenize", {"content": "a"})["tokens"][0]
    request = {"prompt": ids, "n_predict": 1, "n_probs": 10**6, "logit_bias": [[plain, 1e3]], "cache_prompt": False}
    (token,) = server.handle_completions(request)["choices"][0]["logprobs"]["content"]
    table = {one["id"]: one["logprob"] for one in token["top_logprobs"]}
    return [table[i] for i in range(len(table))]


def _post(server: xllamacpp.Server, path: str, body: dict) -> dict:
    content = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), content)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main(sys.argv[1])
