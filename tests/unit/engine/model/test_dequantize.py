import math

import torch

from engine.model.dequantize import in_blocks, mxfp4

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def test_mxfp4_is_low_bits_first_and_a_power_of_two_per_group():
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 2), generator=generator, dtype=torch.uint8)
    found = mxfp4(blocks, scales)
    assert found.shape == (3, 64)
    for row in range(3):
        for group in range(2):
            for i, byte in enumerate(blocks[row, group].tolist()):
                power = math.ldexp(1.0, int(scales[row, group]) - 127)
                pair = found[row, 32 * group + 2 * i : 32 * group + 2 * i + 2].tolist()
                assert pair == [FP4[byte & 15] * power, FP4[byte >> 4] * power]


def test_fp8_blocks_are_cut_off_at_the_edges():
    weight = torch.randn(5, 7).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    found = in_blocks(weight, scales, (3, 3))
    for row in range(5):
        for column in range(7):
            assert found[row, column] == weight[row, column].float() * scales[row // 3, column // 3]
