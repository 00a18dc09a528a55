"""A fine-tuning small enough to be killed and begun again within seconds, for processes of their own."""

import time
from pathlib import Path

import torch


def finetune_in(folder: Path, pause: float = 0.0) -> None:
    """Fine-tune a ternary Llama for 24 steps in `folder`, a checkpoint a step, and leave the weights there."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from forgelib.core.loop import Checkpointer
    from forgelib.phases.finetune import FinetuneConfig, finetune
    from forgelib.quant import convert

    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **small))
    rows = [([(i + t * t) % 40 for t in range(12)],) * 2 for i in range(32)]
    convert(model, smallest=16)
    config = FinetuneConfig(seed=0, epochs=3, batch_size=4, muon_lr=0.01, adamw_lr=0.003, rounding_warmup=0.5)
    checkpointer = Checkpointer(folder / "checkpoints", every_steps=1)
    for _ in finetune(model, lambda epoch: rows, config, pad=0, checkpointer=checkpointer):
        time.sleep(pause)
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / "weights.safetensors")
