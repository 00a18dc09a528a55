"""One step of REINFORCE: thoughts sampled in parallel, the answer read after each, the gradient of what they earned.

    prompt | start | sampled thought ... end | answer <end of text>

Thoughts of a problem that are the same are one row, which counts as often as it was drawn: exact, and most of a baked
model's thoughts are the same. Rows are read a group at a time and differentiated at once, so memory holds the logits of
one group only.

Shape legend: B problems, K thoughts, N <= B K rows, each another thought, G rows of a group, T tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgelib.core.rng import stream
from forgelib.data import Vocabulary
from forgelib.phases.rewards import (
    binary_rewards,
    entropy_per_token,
    kl_per_token,
    leave_one_out,
    likelihood_rewards,
    policy_terms,
)
from forgelib.thoughts import ThoughtConfig, Thoughts, sample_thoughts
from forgelib.thoughts.causal_lm import CausalLM
from forgelib.thoughts.drawing import policy


@dataclass(frozen=True)
class Problem:
    """Token ids of a problem: its prompt, the one that asks for the answer at once, its answer with the end of text."""

    prompt: list[int]
    direct: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Rows:
    """input_ids [N, T], padded on the right; thought [N, T] and answer [N, T]: which tokens were drawn, which are the
    answer's; of [B, K]: the row of each thought."""

    input_ids: Tensor
    thought: Tensor
    answer: Tensor
    of: Tensor

    def group(self, index: slice) -> "Rows":
        """Some rows, as long as the longest of them."""
        some = Rows(self.input_ids[index], self.thought[index], self.answer[index], self.of)
        longest = int((some.thought | some.answer).any(0).nonzero().max()) + 1
        return Rows(some.input_ids[:, :longest], some.thought[:, :longest], some.answer[:, :longest], self.of)


def encoded(row, tokenizer) -> Problem:
    """A ReasoningRow as a Problem."""
    prompt, direct, answer = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (row.prompt, row.direct_prompt, f" {row.answer}")
    )
    return Problem(prompt, direct, [*answer, tokenizer.eos_token_id])


class PolicyStep:
    """Leaves the gradient of a step in `model`; `reference` is frozen. config: a `reinforce.ReinforceConfig`."""

    def __init__(self, model: nn.Module, reference: nn.Module, tokenizer, words: Vocabulary, config):
        self.model, self.reference, self.config = model, reference.eval(), config
        vocabulary = tokenizer.get_vocab()
        for token in (words.begin, words.end):
            if token not in vocabulary:
                raise ValueError(f"the tokenizer has no {token}: bake the vocabulary {words.name} in first")
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        start = tokenizer(f" {words.begin}", add_special_tokens=False)["input_ids"]
        self.thinking = ThoughtConfig(
            config.n_thoughts,
            config.thought_tokens,
            tuple(start),
            vocabulary[words.end],
            config.temperature,
            config.top_p,
        )

    def __call__(self, problems: list[Problem], step: int) -> dict[str, float]:
        """The step's measurements, see `reinforce`; gradients are in the model, clipped."""
        thoughts = self.think(problems, step)
        rows = self.rows(problems, thoughts)
        log_likelihoods, right = (read[rows.of] for read in self.answers(rows))
        if not bool(log_likelihoods.isfinite().all()):
            first = int((~log_likelihoods.isfinite()).any(1).nonzero()[0]) + 1
            raise ValueError(
                f"step {step}, problem {first} of {len(problems)}: a reward is not a number: the model gives the answer"
                " no finite probability. Lower the learning rates, and see whether the baked model's weights are finite"
            )
        rewards = self.rewards(problems, log_likelihoods, right)
        advantages = leave_one_out(rewards)
        found = self.gradient(rows, advantages, lost=~right.any(1))
        return {
            "reward": float(log_likelihoods.mean()) if self.config.reward == "likelihood" else float(rewards.mean()),
            "likelihood": float(log_likelihoods.mean()),
            "right": float(right.float().mean()),
            "thought_length": float(thoughts.lengths.float().mean()),
            "thought_diversity": _distinct(thoughts),
            "num_thoughts": self.config.n_thoughts,
            "zero_advantage": float((advantages.abs() < 1e-6).all(1).float().mean()),
            **found,
        }

    def think(self, problems: list[Problem], step: int) -> Thoughts:
        """K thoughts after each prompt; the step and the seed alone decide what is drawn."""
        longest = max(len(p.prompt) for p in problems)
        ids = torch.tensor([p.prompt + [self.pad] * (longest - len(p.prompt)) for p in problems])
        mask = torch.tensor([[1] * len(p.prompt) + [0] * (longest - len(p.prompt)) for p in problems])
        device = next(self.model.parameters()).device
        generator = torch.Generator().manual_seed(stream(self.config.seed, "thoughts", step))
        last = (mask.sum(1, keepdim=True) - 1).to(device)
        return sample_thoughts(
            self.model, ids.to(device), mask.to(device), self.thinking, positions=last, generator=generator
        )

    def rows(self, problems: list[Problem], thoughts: Thoughts) -> Rows:
        """Prompt, thought and true answer of each different thought; one that was cut off gets its end token."""
        parts, of = {}, []
        for b, problem in enumerate(problems):
            for k in range(self.config.n_thoughts):
                real = thoughts.mask[b, 0, k]
                tokens, drawn = thoughts.tokens[b, 0, k][real].tolist(), thoughts.drawn[b, 0, k][real].tolist()
                if tokens[-1] != self.thinking.end:
                    tokens, drawn = [*tokens, self.thinking.end], [*drawn, False]
                n_before, n_after = len(problem.prompt), len(problem.answer)
                row = ([*problem.prompt, *tokens, *problem.answer], [False] * n_before + drawn + [False] * n_after)
                of.append(parts.setdefault((b, *tokens, *drawn), (len(parts), *row, n_after))[0])
        longest, device = max(len(ids) for _, ids, _, _ in parts.values()), thoughts.tokens.device
        input_ids = torch.full((len(parts), longest), self.pad, device=device)
        thought, answer = torch.zeros_like(input_ids, dtype=torch.bool), torch.zeros_like(input_ids, dtype=torch.bool)
        for i, ids, drawn, n_after in parts.values():
            input_ids[i, : len(ids)], thought[i, : len(ids)] = torch.tensor(ids), torch.tensor(drawn)
            answer[i, len(ids) - n_after : len(ids)] = True
        return Rows(input_ids, thought, answer, torch.tensor(of, device=device).view(len(problems), -1))

    @torch.no_grad()
    def answers(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """log P of the answer [N], nats, and whether each of its tokens is the likeliest [N]: it would be written."""
        log_likelihoods, right = [], []
        for some in self._groups(rows):
            logits, targets, row = self._read(self.model, some, some.answer)
            told = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
            log_likelihoods.append(_by_row(told, row, len(some.input_ids)))
            right.append(_by_row((logits.argmax(-1) != targets).float(), row, len(some.input_ids)) == 0)
        return torch.cat(log_likelihoods), torch.cat(right)

    def rewards(self, problems: list[Problem], log_likelihoods: Tensor, right: Tensor) -> Tensor:
        """Rewards [B, K] as the configuration has them."""
        if self.config.reward == "likelihood":
            return likelihood_rewards(log_likelihoods, self.config.reward_limit)
        longest = max(len(p.direct) + len(p.answer) for p in problems)
        ids = torch.full((len(problems), longest), self.pad, device=right.device)
        answer = torch.zeros_like(ids, dtype=torch.bool)
        for i, p in enumerate(problems):
            ids[i, : len(p.direct) + len(p.answer)] = torch.tensor(p.direct + p.answer)
            answer[i, len(p.direct) : len(p.direct) + len(p.answer)] = True
        nothing = torch.zeros_like(answer)
        return binary_rewards(right, self.answers(Rows(ids, nothing, answer, right))[1])

    def gradient(self, rows: Rows, advantages: Tensor, lost: Tensor) -> dict[str, float]:
        """-A log P(thought) + kl_coefficient KL - entropy_coefficient H, mean over the B K thoughts, differentiated
        group by group; H counts for the thoughts of problems that are `lost`, times the share of those that are not.

        advantages: [B, K]; lost: bool [B]. Returns kl_divergence (nats a token), grad_norm before it was clipped, and
        thought_signal: the norm of what the first term alone gives the logits."""
        of, n_rows, kl_sum, signal, start = rows.of.flatten(), len(rows.input_ids), 0.0, 0.0, 0
        worth = advantages.new_zeros(n_rows).index_add(0, of, advantages.flatten())
        times = torch.bincount(of, minlength=n_rows).to(worth.dtype)
        explored = (lost * (1 - lost.float().mean()))[:, None].expand_as(advantages).flatten()
        explored = torch.zeros_like(worth).index_add(0, of, explored.to(worth.dtype))
        for some in self._groups(rows):
            here = slice(start, start + len(some.input_ids))
            start = here.stop
            logits, targets, row = self._read(self.model, some, some.thought)
            drawn_from = policy(logits, self.config.temperature, self.config.top_p, targets)
            log_probs = _by_row(drawn_from.gather(-1, targets[:, None])[:, 0], row, len(some.input_ids))
            with torch.no_grad():
                frozen = torch.log_softmax(self._read(self.reference, some, some.thought)[0], -1)
            log_policy = torch.log_softmax(logits, -1)
            kl = (kl_per_token(log_policy, frozen) * times[here][row]).sum()
            weight = explored[here][row]
            entropy = (entropy_per_token(log_policy[weight > 0]) * weight[weight > 0]).sum()
            terms = policy_terms(log_probs, worth[here]).sum() / len(of)
            if terms.requires_grad:
                signal += float(torch.autograd.grad(terms, logits, retain_graph=True)[0].square().sum())
            held = self.config.kl_coefficient * kl - self.config.entropy_coefficient * entropy
            (terms + held / len(of)).backward()
            kl_sum += float(kl.detach())
        n_tokens = float((rows.thought.sum(1) * times).sum())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        return {"kl_divergence": kl_sum / n_tokens, "grad_norm": float(norm), "thought_signal": signal**0.5}

    def _groups(self, rows: Rows):
        for start in range(0, len(rows.input_ids), self.config.rows_at_once):
            yield rows.group(slice(start, start + self.config.rows_at_once))

    def _read(self, model: nn.Module, rows: Rows, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the n `wanted` tokens: the logits [n, V] they are told by, which they are [n], their row [n].

        Padding stands on the right, where nothing looks."""
        ids, here = rows.input_ids, wanted[:, 1:]
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        logits = CausalLM(model).read(ids, torch.ones_like(ids), positions).logits[:, :-1]
        return logits[here].float(), ids[:, 1:][here], here.nonzero()[:, 0]


def _by_row(values: Tensor, row: Tensor, n_rows: int) -> Tensor:
    """Sums [n_rows] of values [n] over the tokens of each row."""
    return values.new_zeros(n_rows).index_add(0, row, values)


def _distinct(thoughts: Thoughts) -> float:
    """Share of different ones among the K thoughts of a problem, from 0 (all the same) to 1, mean over problems."""
    n_thoughts = thoughts.tokens.shape[2]
    shares = []
    for tokens, real in zip(thoughts.tokens[:, 0].tolist(), thoughts.mask[:, 0].tolist(), strict=True):
        texts = {
            tuple(t for t, kept in zip(one, mask, strict=True) if kept) for one, mask in zip(tokens, real, strict=True)
        }
        shares.append((len(texts) - 1) / (n_thoughts - 1))
    return sum(shares) / len(shares)
