"""A causal LM that can think before each token: the base model, a mixing head, and the thoughts they were made for.

    model = QuietSTaRModel(base_model, ThoughtConfig(n_thoughts=4, length=12))
    plain = model(input_ids, attention_mask, labels)                            the base model's own output
    thoughts = model.think(input_ids, attention_mask, generator=dice)
    mixed = model(input_ids, attention_mask, labels, thoughts=thoughts)         at step 0 exactly the same logits

The base model is a submodule and is not changed: what its head is given is mixed outside of it.

Shape legend: B texts, T tokens, P positions, K thoughts, L tokens of a thought, D width, V vocabulary.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .causal_lm import CausalLM
from .mixing import N_HEADS, MixingHead
from .reading import read_thoughts
from .sampling import sample_thoughts
from .thought import ThoughtConfig, Thoughts, text_mask

BASE, MIXING, SETTINGS = "base", "mixing.safetensors", "quietstar.json"


@dataclass
class MixedOutput:
    """loss: scalar, nats per token, or None without labels. logits, base_logits: [B, T, V], with thoughts and without.

    log_probs [B, P, K, L]: of the thoughts' drawn tokens, with gradient. gate [B, P]: how much each position takes of
    its thoughts, 0 to 1. attention [B, P, K]: the share of each thought.
    """

    loss: Tensor | None
    logits: Tensor
    base_logits: Tensor
    log_probs: Tensor
    gate: Tensor
    attention: Tensor


class QuietSTaRModel(nn.Module):
    """Any Hugging Face causal LM with a mixing head.

    Raises ValueError for a model whose logits are not simply its head's (scaled or capped ones): the mixed state could
    not be read as the model reads its own.
    """

    def __init__(self, base_model: nn.Module, config: ThoughtConfig | None = None, n_heads: int = N_HEADS):
        super().__init__()
        lm = CausalLM(base_model)
        self.base_model, self.config = base_model, config or ThoughtConfig()
        self.mixing = MixingHead(lm.head.weight.shape[1], n_heads).to(lm.device, lm.head.weight.dtype)
        self._refuse_foreign_logits(lm)

    @torch.no_grad()
    def _refuse_foreign_logits(self, lm: CausalLM) -> None:
        ids = torch.zeros((1, 2), dtype=torch.long, device=lm.device)
        read = lm.read(ids, torch.ones_like(ids), torch.arange(2, device=lm.device)[None])
        if not torch.equal(lm.head(read.states), read.logits):
            raise ValueError(
                f"the logits of {type(self.base_model).__name__} are not what its output head gives: they are scaled "
                "or capped afterwards, and a mixing head before that head cannot be exact"
            )

    def think(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Thoughts:
        """Sample thoughts as `config` has them; see `sample_thoughts`."""
        options = {"positions": positions, "generator": generator}
        return sample_thoughts(self.base_model, input_ids, attention_mask, self.config, **options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        thoughts: Thoughts | None = None,
    ):
        """Without thoughts the base model's own output; with them a `MixedOutput`, differentiable throughout.

        labels [B, T]: -100 is ignored; the loss is the plain cross-entropy of the next token. Thoughts change only what
        is predicted at their positions. A model that halts halts here.
        """
        lm, valid = CausalLM(self.base_model), text_mask(input_ids, attention_mask)
        mask, position_ids = valid.long(), lm.position_ids(valid)
        if thoughts is None:
            options = {"position_ids": position_ids} if "position_ids" in lm.accepted else {}
            return self.base_model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False, **options)
        text = lm.read(input_ids, mask, position_ids)
        reading = read_thoughts(self.base_model, input_ids, attention_mask, thoughts)
        columns = thoughts.positions.clamp_min(0)[..., None].expand(-1, -1, text.states.shape[-1])
        before = text.states.gather(1, columns)
        mixed = self.mixing(before, reading.end_states, thoughts.mask.any(-1))
        states = text.states.scatter_add(1, columns, mixed.states - before)
        logits = lm.head(states)
        loss = None if labels is None else _next_token_loss(logits, labels)
        return MixedOutput(loss, logits, text.logits, reading.log_probs, mixed.gate, mixed.attention)

    def save_pretrained(self, folder: Path | str) -> None:
        """The base model as a Hugging Face folder below `folder`, the mixing head and the settings beside it."""
        folder = Path(folder)
        self.base_model.save_pretrained(folder / BASE)
        save_file({name: part.contiguous() for name, part in self.mixing.state_dict().items()}, folder / MIXING)
        settings = {"n_heads": self.mixing.n_heads, "thoughts": asdict(self.config)}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "QuietSTaRModel":
        """What `save_pretrained` wrote, in evaluation mode. For a Cognate base, forgelib.models must be imported.

        Raises FileNotFoundError naming the file that is missing.
        """
        from transformers import AutoModelForCausalLM

        folder = Path(folder)
        for name in (SETTINGS, MIXING, BASE):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} is no QuietSTaRModel: it has no {name}")
        settings = json.loads((folder / SETTINGS).read_text())
        thoughts = settings["thoughts"]
        config = ThoughtConfig(**{**thoughts, "start": tuple(thoughts["start"])})
        model = cls(AutoModelForCausalLM.from_pretrained(folder / BASE), config, settings["n_heads"])
        model.mixing.load_state_dict(load_file(folder / MIXING))
        return model.eval()


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over the labels that count. Raises ValueError where none does."""
    targets = labels[:, 1:]
    counted = targets != -100
    if not bool(counted.any()):
        raise ValueError("labels hold no token to predict: every label after the first is -100")
    return nn.functional.cross_entropy(logits[:, :-1][counted].float(), targets[counted])
