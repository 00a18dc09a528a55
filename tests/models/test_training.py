"""The training loss, and that it reaches every weight."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from forgelib.models import layers
from forgelib.models.recursion import active_tokens, put_tokens, refine, supervision_weights, take_tokens


def test_every_parameter_gets_a_gradient(tiny, text):
    model, ids = tiny().train(), text(3, 14)
    model(input_ids=ids, labels=ids, logits_to_keep=1).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert any("halting" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("without", ["memory_gate", "first_latent", "halting"])
def test_a_weight_that_loses_its_gradient_would_be_noticed(tiny, text, without):
    model, ids = tiny().train(), text(3, 14)
    if without == "memory_gate":
        model.model.use_memory = False
    elif without == "first_latent":
        model.model.first_latent.requires_grad_(False)
    else:
        model.config.act_weight = 0.0
    model(input_ids=ids, labels=ids).loss.backward()
    named = [p for name, p in model.named_parameters() if without in name]
    assert any(p.grad is None or p.grad.abs().max() == 0 for p in named)


def test_supervision_weights():
    assert supervision_weights(3) == [0.5, 0.75, 1.0]
    assert supervision_weights(1) == [1.0]
    assert supervision_weights(6) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_the_loss_is_the_weighted_sum_of_its_parts(tiny, text):
    model, ids = tiny(act_weight=0.3, gate_entropy_weight=0.02).train(), text(2, 12)
    output = model(input_ids=ids, labels=ids)
    supervised = (output.cycle_losses * torch.tensor([0.5, 0.75, 1.0])).sum() / 2.25
    torch.testing.assert_close(output.loss, supervised + 0.3 * output.act_loss - 0.02 * output.gate_entropy)
    last = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.cycle_losses[-1], last.detach())


def test_cycles_are_detached_from_each_other(tiny, text):
    """The last cycle's loss reaches the first latent only through cycle 1: with its loss alone it gets no gradient."""
    model, ids = tiny().train(), text(2, 12)
    states = model.model(input_ids=ids).cycle_states
    (gradient,) = torch.autograd.grad(
        states[2].square().sum(), model.model.first_latent, retain_graph=True, allow_unused=True
    )
    assert gradient is None
    (gradient,) = torch.autograd.grad(states[0].square().sum(), model.model.first_latent)
    assert gradient.abs().max() > 0


def test_labels_of_minus_100_are_left_out(tiny, text):
    model, ids = tiny(), text(2, 12)
    labels = ids.clone()
    labels[:, :7] = -100
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    expected = F.cross_entropy(output.logits[:, 6:-1].flatten(0, 1), ids[:, 7:].flatten())
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="labels hold no token to predict"):
        model(input_ids=ids, labels=torch.full_like(ids, -100))


def test_logits_to_keep_changes_no_loss(tiny, text):
    model, ids = tiny().train(), text(2, 12)
    full, last = model(input_ids=ids, labels=ids), model(input_ids=ids, labels=ids, logits_to_keep=1)
    assert last.logits.shape == (2, 1, 37) and full.logits.shape == (2, 12, 37)
    torch.testing.assert_close(last.logits, full.logits[:, -1:])
    torch.testing.assert_close(last.cycle_losses, full.cycle_losses)


@pytest.mark.parametrize("at_once", [37, 37 * 4, 37 * 5, 10**9])
def test_cross_entropy_in_chunks_equals_plain_cross_entropy(monkeypatch, at_once):
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(11, 8), torch.randn(37, 8), torch.randint(0, 37, (11,))
    scale = torch.rand(11)

    def measure(loss_of):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        losses = loss_of(*leaves)
        return [losses, *torch.autograd.grad((losses * scale).sum(), leaves)]

    monkeypatch.setattr(layers, "LOGITS_AT_ONCE", at_once)
    chunked = measure(lambda h, w: layers.token_cross_entropy(h, w, labels)[0])
    plain = measure(lambda h, w: F.cross_entropy(h @ w.T, labels, reduction="none"))
    for a, b in zip(chunked, plain, strict=True):
        torch.testing.assert_close(a, b)
    right = layers.token_cross_entropy(hidden, weight, labels)[1]
    assert (right == ((hidden @ weight.T).argmax(-1) == labels)).all()


def test_refine_is_the_equation():
    """z <- f(z + y + x) n times, then y <- f(y + z), with no x (TRM, figure 3)."""
    x, y, z = torch.randn(3, 4)

    def net(u):
        return torch.tanh(2 * u) + 0.1

    expected_z = net(net(z + y + x) + y + x)
    new_y, new_z = refine(net, x, y, z, 2)
    torch.testing.assert_close(new_z, expected_z)
    torch.testing.assert_close(new_y, net(y + expected_z))


def test_running_tokens_are_taken_and_put_back_in_place():
    torch.manual_seed(0)
    x, running = torch.randn(2, 5, 3), torch.tensor([[True, False, True, False, False], [False] * 4 + [True]])
    index, real = active_tokens(running)
    assert index.shape == (2, 2) and real.tolist() == [[True, True], [True, False]]
    back = put_tokens(x, index, take_tokens(x, index) + 1, real)
    torch.testing.assert_close(back - x, running[..., None].float().expand_as(x), atol=1e-6, rtol=0)


def test_training_lowers_the_loss_with_halting_and_memory_on(tiny, text):
    model, ids = tiny(initializer_range=0.05).train(), text(4, 16)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(25):
        output = model(input_ids=ids, labels=ids, logits_to_keep=1)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.cycle_losses[-1]))
    assert losses[-1] < 0.6 * losses[0]
    assert output.cycle_losses.isfinite().all() and 0 < output.gate_entropy < 0.7
    assert output.memory_share.shape == (2,) and ((output.memory_share > 0) & (output.memory_share < 1)).all()


def test_transformers_trainer_accumulates_the_same_gradient(tiny, text, tmp_path):
    """Eight rows at once, or two at a time four times: the mean of the same losses."""
    rows = [{"input_ids": row, "labels": row} for row in text(8, 12)]
    norms = []
    for batch, times in ((8, 1), (2, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": times, "max_steps": 1}
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
        trainer = Trainer(tiny(), TrainingArguments(str(tmp_path), **sizes, **quiet), train_dataset=rows)
        trainer.train()
        norms.append(next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry))
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
