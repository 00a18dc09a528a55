"""(g) Thoughts at 64 positions at once against one position after the other with a cache, the same greedy thoughts.

    parallel       sample_thoughts: one forward pass for the text, then one per thought token, all positions together
    one by one     the text advances by a token with a cache; a copy of the cache generates the thought there

The second reads the text once only, as a good implementation would. Both make the same tokens, which is checked. The
repeats are interleaved in one process, so a busy machine slows both; a figure is a median.
"""

import copy
import statistics
import time

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench.table import main
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.thoughts import ThoughtConfig, sample_thoughts

TITLE = "(g) thoughts at 64 positions in parallel, against position by position with a cache"
POSITIONS, LENGTH = 64, 12


def models() -> dict[str, PreTrainedModel]:
    """A small Llama and the Cognate of the laptop profile, random weights."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024}
    llama = LlamaForCausalLM(LlamaConfig(hidden_size=128, intermediate_size=384, initializer_range=0.1, **sizes))
    laptop = CognateConfig(
        d_model=128, d_ff=384, n_layers=3, memory_layers=[1], window=32, memory_chunk=32, recursion_layers=1
    )
    cognate = CognateForCausalLM(laptop)
    return {"small Llama": llama.eval(), "laptop Cognate": cognate.eval()}


@torch.no_grad()
def one_by_one(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Greedy thoughts [T, L] after each token of ids [1, T]: the text's cache is copied at each position."""
    cache, thoughts = None, []
    for position in range(ids.shape[1]):
        output = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache, thought = output.past_key_values, [output.logits[:, -1].argmax(-1, keepdim=True)]
        own = copy.deepcopy(cache)
        while len(thought) < LENGTH:
            output = model(input_ids=thought[-1], past_key_values=own, use_cache=True)
            thought.append(output.logits[:, -1].argmax(-1, keepdim=True))
        thoughts.append(torch.cat(thought, 1))
    return torch.cat(thoughts)


def in_parallel(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The same by `sample_thoughts`."""
    config = ThoughtConfig(n_thoughts=1, length=LENGTH, temperature=0.0)
    return sample_thoughts(model, ids, None, config).tokens[0, :, 0]


def run(quick: bool = False) -> list[dict]:
    """A row for each model and way: median and fastest milliseconds, and how often it fits into "one by one"."""
    repeats, rows = 1 if quick else 5, []
    for model_name, model in models().items():
        ids = torch.randint(model.config.vocab_size, (1, POSITIONS), generator=torch.Generator().manual_seed(0))
        ways, found = {"parallel": in_parallel, "one by one": one_by_one}, {}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(-1, repeats):
            for name, way in ways.items():
                started = time.perf_counter()
                found[name] = way(model, ids)
                if repeat >= 0:
                    times[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows += [
            {
                "model": model_name,
                "thoughts": name,
                "median ms": 1e3 * medians[name],
                "fastest ms": 1e3 * min(times[name]),
                "speed-up": medians["one by one"] / medians[name],
                "same tokens": (found["parallel"] == found["one by one"]).double().mean().item(),
            }
            for name in ways
        ]
    return rows


if __name__ == "__main__":
    main(TITLE, run)
