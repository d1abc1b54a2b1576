import torch

from engine.sampling import largest


def test_equals_torch():
    x = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(largest.argmax(x), x.argmax(-1))
    assert torch.equal(largest.sort(x), x.sort(descending=True).values)
    for k in (1, 256, 1000):
        values, places = largest.top(x, k)
        assert torch.equal(values, x.gather(1, places))
        assert torch.equal(largest.sort(values), x.topk(k).values)


def test_first_of_equals():
    assert largest.argmax(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])).tolist() == [1, 0]
