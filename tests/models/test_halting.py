"""Adaptive computation: a token that is sure stops, costs nothing more, and changes nothing for the others."""

import pytest
import torch

from forgelib.models.cognate import refine
from forgelib.models.halting import EMA_DECAY, HaltingHead


def look(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, **inputs)


def test_the_number_of_cycles_depends_on_the_input(tiny, text):
    cycles = look(tiny(act_threshold=0.6), text(4, 30)).n_cycles
    assert set(cycles.unique().tolist()) == {1, 2, 3}


def test_a_higher_threshold_never_means_fewer_cycles(tiny, text):
    ids, before, totals = text(4, 30), None, []
    for threshold in (0.01, 0.3, 0.6, 0.9, 0.99, 0.9999):
        cycles = look(tiny(act_threshold=threshold), ids).n_cycles
        assert before is None or (cycles >= before).all()
        before = cycles
        totals.append(int(cycles.sum()))
    assert totals[0] < totals[2] < totals[-1]


def test_a_token_stops_in_the_first_cycle_that_is_sure(tiny, text):
    """Against the recursion written out: every token through every cycle, then the first one above the threshold."""
    model, ids = tiny(act_threshold=0.6), text(3, 17)
    halted = look(model, ids)
    inner, context = model.model, {}
    inner.context_norm.register_forward_hook(lambda module, inputs, output: context.update(x=output))
    full = look(model, ids, halt=False)
    x = context["x"]
    reach = inner._reach(x, None, None)
    y, z, states, sure = x, inner.first_latent.expand_as(x), [], []
    with torch.no_grad():
        for _ in range(3):
            y, z = refine(inner._net(inner._contexts(x, reach)), x, y, z, model.config.n_micro_steps)
            states.append(y)
            sure.append(torch.sigmoid(inner.halting(y)) >= 0.6)
    first = torch.stack([*sure[:2], torch.ones_like(sure[0])]).float().argmax(0)
    assert (halted.n_cycles == first + 1).all()
    expected = model.lm_head(torch.stack(states).gather(0, first[None, ..., None].expand(1, *x.shape))[0])
    torch.testing.assert_close(halted.logits, expected, atol=1e-5, rtol=0)
    ran_all = halted.n_cycles == 3
    assert ran_all.any() and not ran_all.all()
    torch.testing.assert_close(halted.logits[ran_all], full.logits[ran_all], atol=1e-5, rtol=0)


def test_a_halted_token_is_not_computed(tiny, text):
    model, ids, tokens = tiny(act_threshold=0.6), text(1, 30), []
    model.model.recursion[0].register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
    output = look(model, ids)
    calls = model.config.n_micro_steps + 1
    running = [int((output.n_cycles > cycle).sum()) for cycle in range(int(output.n_cycles.max()))]
    assert tokens == [n for n in running for _ in range(calls)] and tokens[-1] < 30


def test_a_text_that_is_all_sure_runs_one_cycle(tiny, text):
    model, calls = tiny(act_threshold=0.01), []
    model.model.recursion[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.model.halting.probe.bias.fill_(20.0)
    assert (look(model, text(2, 9)).n_cycles == 1).all() and len(calls) == 3


def test_padding_runs_no_cycle(tiny, text):
    mask = (torch.arange(12) >= 5).long()[None]
    output = look(tiny(), text(1, 12) * mask, attention_mask=mask)
    assert (output.n_cycles[0, :5] == 0).all() and (output.n_cycles[0, 5:] > 0).all()


def test_the_reported_probability_is_the_one_that_stopped_the_token(tiny, text):
    output = look(tiny(act_threshold=0.6), text(3, 20))
    early = output.n_cycles < 3
    assert (output.halt_probability[early] >= 0.6).all()
    assert (output.halt_probability[~early] < 0.6).any()


def test_training_runs_all_cycles_and_evaluation_reports_the_plain_loss(tiny, text):
    ids = text(2, 12)
    trained = tiny(act_threshold=0.01).train()(input_ids=ids, labels=ids)
    assert (trained.n_cycles == 3).all() and trained.cycle_losses.shape == (3,)
    output = look(tiny(act_threshold=0.6), ids, labels=ids)
    plain = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, plain)


def test_running_accuracy_starts_at_the_first_batch_and_moves_by_two_percent():
    head, logits = HaltingHead(4, 6).train(), torch.zeros(4)
    head.loss(logits, torch.tensor([True, True, True, False]), cycle=1)
    assert head.step_accuracy.tolist() == [-1, 0.75, -1, -1, -1, -1]
    head.loss(logits, torch.zeros(4, dtype=torch.bool), cycle=1)
    assert head.step_accuracy[1].item() == pytest.approx(EMA_DECAY * 0.75)
    head.eval().loss(logits, torch.ones(4, dtype=torch.bool), cycle=1)
    assert head.step_accuracy[1].item() == pytest.approx(EMA_DECAY * 0.75), "evaluation teaches it nothing"


def test_the_target_is_right_or_wrong_drawn_towards_the_running_accuracy():
    head, logits = HaltingHead(4, 6).eval(), torch.tensor([0.3, -1.2])
    head.step_accuracy[0] = 0.4
    target = torch.tensor([0.99 + 0.01 * 0.4, 0.01 * 0.4])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(head.loss(logits, torch.tensor([True, False]), cycle=0), expected)


def test_the_head_learns_to_tell_right_from_wrong(tiny, text):
    """On a text whose every second token is fixed, the sure tokens are those before a fixed one."""
    model = tiny(initializer_range=0.05, act_threshold=0.5, n_layers=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(50):
        ids = text(8, 12, seed=step)
        ids[:, 1::2] = 7
        output = model(input_ids=ids, labels=ids, logits_to_keep=1)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    output = look(model.eval(), ids)
    easy = output.halt_probability[:, 0:-1:2]
    hard = output.halt_probability[:, 1:-1:2]
    accuracy = (output.logits[:, 0:-1:2].argmax(-1) == 7).float().mean()
    assert accuracy > 0.95 and easy.mean() > 0.8 and hard.mean() < 0.3
    assert output.n_cycles[:, 0:-1:2].float().mean() < output.n_cycles[:, 1:-1:2].float().mean()
