"""A baking small enough to be killed and begun again within seconds, for processes of their own."""

import time
from pathlib import Path

import torch


def bake_in(folder: Path, pause: float = 0.0) -> None:
    """Bake 40 rows for 6 epochs in `folder`, a checkpoint a step, and leave the weights there."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from forgelib.core.loop import Checkpointer
    from forgelib.data import vocabulary
    from forgelib.data.tokenizer import train_bpe
    from forgelib.data.traces import procedural_rows
    from forgelib.phases.bake import BakeConfig, bake
    from forgelib.thoughts import add_vocabulary

    torch.set_num_threads(1)
    words = vocabulary("forge-12")
    rows = procedural_rows(40, words, seed=0, part="train")
    tokenizer, _ = train_bpe([row.text for row in rows], 320)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **small))
    add_vocabulary(model, tokenizer, words)
    config = BakeConfig(seed=0, epochs=6, batch_size=8, muon_lr=0.01, adamw_lr=0.003, looks=3, max_new_tokens=4)
    checkpointer = Checkpointer(folder / "checkpoints", every_steps=1)
    for _ in bake(model, tokenizer, words, rows, rows[:10], config, checkpointer=checkpointer):
        time.sleep(pause)
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / "weights.safetensors")
