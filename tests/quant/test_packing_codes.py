"""2 bits in memory, base 3 on disk: what goes in comes out, and what never went in is refused."""

import pytest
import torch

from forgelib.quant import from_base3, pack, to_base3, unpack
from forgelib.quant.packing import MAX_INPUTS

SHAPES = [(1, 1), (1, 4), (64, 4), (65, 7), (70, 52), (33, 1000), (128, 256)]


def codes(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randint(0, 3, (outputs, inputs), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_goes_in_comes_out(shape):
    original = codes(*shape)
    assert torch.equal(unpack(pack(original), *shape), original)
    assert torch.equal(from_base3(to_base3(original), *shape), original)


def test_the_layout_is_the_one_drawn_beside_the_kernel():
    original = codes(128, 12)
    packed = pack(original)
    for row, column in [(0, 0), (5, 3), (17, 4), (63, 11), (64, 0), (127, 7)]:
        panel, field, place = row // 64, row % 64 // 16, row % 16
        byte = int(packed[panel, column // 4, 4 * place + column % 4])
        assert byte >> (2 * field) & 3 == int(original[row, column])


def test_bits_in_memory_and_on_disk():
    original = codes(512, 640)
    assert pack(original).nbytes * 8 == 2 * original.numel()
    assert to_base3(original).nbytes * 8 == 1.6 * original.numel()


@pytest.mark.parametrize("write", [pack, to_base3])
def test_codes_that_are_no_weights_are_refused(write):
    bad = codes(4, 8)
    bad[1, 1] = 3
    with pytest.raises(ValueError, match="a code is 3"):
        write(bad)
    with pytest.raises(ValueError, match="uint8"):
        write(codes(4, 8).float())
    with pytest.raises(ValueError, match="uint8"):
        write(codes(4, 8).view(-1))
    with pytest.raises(ValueError, match="at least 1"):
        write(codes(4, 0))


def test_more_inputs_than_the_sums_can_hold_are_refused():
    with pytest.raises(ValueError, match=f"at most {MAX_INPUTS}"):
        pack(torch.ones(1, MAX_INPUTS + 1, dtype=torch.uint8))


def test_damaged_memory_is_refused():
    packed = pack(codes(70, 50))
    for changed, message in [
        (packed[:, :-1], "are uint8"),
        (packed.to(torch.int8), "are uint8"),
        (packed.reshape(-1), "are uint8"),
        (changed_at(packed, (0, 3, 5), 0b11), "the code 3"),
        (changed_at(packed, (1, 3, 40), 0), "padded"),
        (changed_at(packed, (0, 12, 3), 0), "padded"),
    ]:
        with pytest.raises(ValueError, match=message):
            unpack(changed, 70, 50)


def test_a_damaged_file_is_refused():
    stored = to_base3(codes(7, 7))  # 49 codes in 10 bytes: the last code is padding
    for changed, message in [
        (stored[:-1], "10 bytes"),
        (torch.cat([stored, stored[:1]]), "10 bytes"),
        (stored.int(), "10 bytes"),
        (changed_at(stored, (4,), 243), "above 242"),
        (changed_at(stored, (9,), 0), "end with zero weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_base3(changed, 7, 7)
    with pytest.raises(ValueError, match="bytes on disk"):
        from_base3(stored, 7, 9)


def changed_at(tensor: torch.Tensor, place: tuple, value: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor
