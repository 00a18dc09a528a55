"""The native decoder says what the packed model says: the same tokens, the same cycles, the same logits.

Two sums in another order differ in their last bit, and now and then that bit decides how an activation is rounded to
int8; that step, and those that remember it, differ by up to some hundredths, and torch differs from itself by as much
between a text read at once and token by token. So logits are held to 1e-5 in every step where nothing is rounded, and
in most steps where it is.
"""

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases import decoding
from forgelib.phases.decoding import blueprint, greedy, native_decoder, read_prompt
from forgelib.quant import CannotDecode, Decoder, convert, native, pack_model

compiled = pytest.mark.skipif(native.kernel() is None, reason=f"no kernel here: {native.why_not()}")
VOCABULARY, NEW = 50, 64
#: Heads of 10 and 18, inner widths of 90 and 100, a window shorter than the text.
LLAMA = {"hidden_size": 60, "intermediate_size": 90, "num_hidden_layers": 2, "num_attention_heads": 6}
COGNATE = {"d_model": 72, "n_layers": 2, "n_heads": 4, "d_ff": 100, "window": 8, "memory_chunk": 4}
NO_END = {"bos_token_id": None, "eos_token_id": None, "vocab_size": VOCABULARY}


def build(family: str, spread: float = 0.1) -> PreTrainedModel:
    """A small model with random weights; `cognate` stops at different depths."""
    torch.manual_seed(1)
    if family in ("llama", "llama-tied", "qwen2"):
        kind, config = (Qwen2ForCausalLM, Qwen2Config) if family == "qwen2" else (LlamaForCausalLM, LlamaConfig)
        more = {"num_key_value_heads": 2, "tie_word_embeddings": family == "llama-tied", "initializer_range": spread}
        model = kind(config(**LLAMA, **NO_END, **more))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.2)
        return model.eval()
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, n_positions=128, **NO_END)).eval()
    more = {
        "cognate": {"memory_layers": [1], "act_threshold": 0.12},
        "cognate-narrowest": {"window": 1, "conv_kernel": 1, "act_threshold": 0.999},
        "cognate-one-layer": {"n_micro_steps": 3, "max_cycles": 1, "recursion_layers": 1, "memory_layers": []},
    }[family]
    return CognateForCausalLM(CognateConfig(**{**COGNATE, **NO_END, "initializer_range": spread, **more})).eval()


def packed(family: str) -> PreTrainedModel:
    model = build(family)
    convert(model, smallest=16)
    return pack_model(model)


def prompt(length: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def by_torch(
    model: PreTrainedModel, ids: torch.Tensor, n_steps: int = NEW
) -> tuple[torch.Tensor, list[int], list[int]]:
    """Logits [N, V] of N greedy steps with a cache, the tokens, and the recursion's cycles of all but the prompt."""
    output = model(input_ids=ids, use_cache=True)
    logits, tokens, cycles = [output.logits[0, -1]], [], []
    while True:
        tokens.append(int(logits[-1].argmax()))
        if len(tokens) == n_steps:
            return torch.stack(logits), tokens, cycles
        output = model(input_ids=torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values)
        logits.append(output.logits[0, -1])
        cycles.append(int(output.n_cycles) if "n_cycles" in output else 0)


def native_logits(model: PreTrainedModel, decoder: Decoder, ids: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Logits [N, V] where the decoder is given these tokens after the prompt."""
    first = read_prompt(model, decoder, ids, len(tokens)).clone()
    return torch.stack([first, *(decoder.step(token).clone() for token in tokens[:-1])])


def differences(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """|difference| / |expected| of each step."""
    return (logits - expected).norm(dim=-1) / expected.norm(dim=-1)


FAMILIES = ("llama", "llama-tied", "qwen2", "cognate", "cognate-narrowest", "cognate-one-layer")


@compiled
@pytest.mark.parametrize("short", [0, 100], ids=["prompt by torch", "prompt natively"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_rounding_every_logit_is_that_of_torch(family, short, monkeypatch):
    monkeypatch.setattr(decoding, "SHORT_PROMPT", short)
    model = build(family)
    decoder = native_decoder(model)
    for length in (1, 40):
        ids = prompt(length)
        expected, tokens, _ = by_torch(model, ids, 20)
        assert float(differences(native_logits(model, decoder, ids, tokens), expected).max()) < 1e-5


@compiled
@pytest.mark.parametrize("family", ["llama", "qwen2", "cognate", "cognate-one-layer"])
def test_the_tokens_are_those_of_the_packed_model(family):
    model = packed(family)
    decoder = native_decoder(model)
    for length in (1, 7, 40):
        ids = prompt(length)
        expected, tokens, cycles = by_torch(model, ids)
        if length == 7:
            generated = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0, length:]
            assert generated.tolist() == tokens
        text = greedy(model, ids, NEW, decoder=decoder)
        assert text.how.startswith("native, ")
        assert text.ids.tolist() == tokens and list(text.cycles) == cycles
        apart = differences(native_logits(model, decoder, ids, tokens), expected)
        assert float(apart.median()) < 1e-5 and float(apart.max()) < 0.05
        if family == "cognate":
            assert len(set(cycles)) > 1, "tokens halt at different depths"


@compiled
@pytest.mark.parametrize("family", ["qwen2", "cognate"])
def test_every_path_and_number_of_threads_gives_the_same_bits(family, monkeypatch):
    monkeypatch.setattr(native, "WORTH_THREADS", 1)
    model, ids, paths = packed(family), prompt(3), native.kernel().paths
    results = []
    for path, n_threads in (*((path, 1) for path in paths), (paths[-1], 2)):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            results.append(native_logits(model, Decoder(blueprint(model), path), ids, [4, 5, 6]))
        finally:
            torch.set_num_threads(before)
    assert len(results) >= 2 and all(torch.equal(results[0], other) for other in results[1:])


@compiled
def test_a_memory_switched_off_is_neither_read_nor_written():
    model, ids = build("cognate"), prompt(9)
    on = native_logits(model, native_decoder(model), ids, [1, 2, 3])
    model.model.use_memory = False
    decoder = native_decoder(model)
    off = native_logits(model, decoder, ids, [1, 2, 3])
    with torch.no_grad():
        expected = model(input_ids=torch.cat([ids[0], torch.tensor([1, 2])])[None]).logits[0, -3:]
    assert float(differences(off, expected).max()) < 1e-5 < float(differences(on, expected).min())
    assert torch.equal(decoder.memories[1][0], model.model.blocks[1].memory.initial_memory.transpose(-1, -2))


@compiled
def test_a_decoder_starts_anew_for_every_text():
    model = packed("cognate")
    decoder = native_decoder(model)
    alone = greedy(model, prompt(5), 8, decoder=decoder)
    greedy(model, prompt(40), 30, decoder=decoder)
    assert torch.equal(greedy(model, prompt(5), 8, decoder=decoder).ids, alone.ids)
    model = packed("llama")
    decoder = native_decoder(model)
    for length, more in ((5, 8), (3, 20), (5, 8)):
        fresh = greedy(model, prompt(length), more)
        assert torch.equal(greedy(model, prompt(length), more, decoder=decoder).ids, fresh.ids)


def test_an_end_token_ends_the_text(monkeypatch):
    model, ids = packed("llama"), prompt(7)
    tokens = greedy(model, ids, NEW).ids.tolist()
    end = tokens[20]
    until = tokens[: tokens.index(end) + 1]
    assert greedy(model, ids, NEW, end={end}).ids.tolist() == until
    monkeypatch.setattr(native, "kernel", lambda: None)
    assert greedy(model, ids, NEW, end={end}).ids.tolist() == until


def test_without_a_kernel_torch_decodes_and_it_is_said(monkeypatch):
    model, ids = packed("cognate"), prompt(7)
    expected = by_torch(model, ids)[1]
    monkeypatch.setattr(native, "load", lambda: (None, "no C++ compiler found"))
    text = greedy(model, ids, NEW)
    assert text.how == "torch: there is no native kernel (no C++ compiler found)" and text.ids.tolist() == expected


@compiled
def test_a_decoder_that_cannot_be_compiled_is_no_error_and_is_named(monkeypatch):
    def fails(path: str) -> None:
        raise native.CannotBuild("g++ could not compile decoder.cpp: no disk")

    monkeypatch.setattr(native, "decoder", fails)
    assert greedy(packed("llama"), prompt(3), 4).how == "torch: g++ could not compile decoder.cpp: no disk"


@compiled
def test_an_architecture_or_state_that_it_does_not_know_is_decoded_by_torch_and_named():
    model = build("gpt2")
    text = greedy(model, prompt(3), 5)
    assert "GPT2LMHeadModel is no architecture of the native decoder (LlamaForCausalLM" in text.how
    assert text.ids.tolist() == model.generate(prompt(3), max_new_tokens=5, do_sample=False)[0, 3:].tolist()

    def refused(change, family: str = "llama") -> str:
        model = build(family)
        change(model)
        with pytest.raises(CannotDecode) as error:
            native_decoder(model)
        return str(error.value)

    assert "call eval()" in refused(lambda m: m.train())
    assert "lm_head has hooks" in refused(lambda m: m.lm_head.register_forward_hook(lambda *a: None))
    assert "pack_model first" in refused(lambda m: convert(m, smallest=16))
    assert "feed-forward uses gelu" in refused(lambda m: setattr(m.config, "hidden_act", "gelu"))
    assert "(dynamic)" in refused(lambda m: setattr(m.model.rotary_emb, "rope_type", "dynamic"))
    window = ["full_attention", "sliding_attention"]
    assert "a window" in refused(lambda m: setattr(m.config, "layer_types", window), "qwen2")
    assert "bfloat16" in refused(lambda m: m.to(torch.bfloat16), "cognate")


def test_a_model_without_a_cache_of_keys_and_values_is_given_the_whole_text_again():
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.2}
    model = MambaForCausalLM(MambaConfig(**sizes, **NO_END)).eval()
    convert(model, smallest=16)
    pack_model(model)
    ids = prompt(5)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 5:].tolist()
    text = greedy(model, ids, 8)
    assert text.ids.tolist() == expected
    assert text.how.startswith("torch, the whole text again for every token: MambaForCausalLM is no architecture")
    assert greedy(model, ids, 8, end={expected[2]}).ids.tolist() == expected[: expected.index(expected[2]) + 1]


@pytest.mark.parametrize("by", ["native", "torch"])
def test_logits_that_are_no_numbers_stop_the_text(by, monkeypatch):
    model = packed("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    if by == "torch":
        monkeypatch.setattr(native, "kernel", lambda: None)
    with pytest.raises(FloatingPointError, match="NaN"):
        greedy(model, prompt(3), 4)


def test_batches_and_empty_prompts_are_refused():
    model = packed("llama")
    for shape in ((2, 3), (1, 0), (3,)):
        with pytest.raises(ValueError, match="one prompt"):
            greedy(model, torch.zeros(shape, dtype=torch.long), 4)
