"""What a caller of transformers' models may ask a forward pass for."""

import pytest
import torch


@pytest.fixture(params=[True, False], ids=["training", "inference"])
def model(request, tiny):
    return tiny().train(request.param)


def test_hidden_states_are_the_embeddings_every_block_and_what_the_head_reads(model, text):
    ids = text(2, 10)
    asked, plain = model(ids, output_hidden_states=True), model(ids)
    first, *blocks, last = asked.hidden_states
    assert torch.equal(first, model.get_input_embeddings()(ids)) and len(blocks) == model.config.n_layers
    assert torch.equal(model.lm_head(last), asked.logits) and torch.equal(asked.logits, plain.logits)
    assert len({state[0, 0, 0].item() for state in asked.hidden_states}) == len(blocks) + 2
    assert plain.hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == len(blocks) + 2


def test_hidden_states_of_a_generation(tiny, text):
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    found = tiny().generate(text(1, 10), output_hidden_states=True, **options)
    assert [step[0].shape[1] for step in found.hidden_states] == [10, 1, 1]


def test_a_text_without_tokens_is_refused(model, text):
    with pytest.raises(ValueError, match="no tokens"):
        model(text(1, 0))
