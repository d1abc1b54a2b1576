import pytest
import torch

from engine.model.routing import Routing, route

LOGITS = torch.randn(40, 24, generator=torch.Generator().manual_seed(5)) * 2


def chosen(logits, routing, correction=None):
    """Experts and weights of each token as a dict."""
    experts, weights = route(logits, routing, correction)
    assert experts.shape == weights.shape == (len(logits), routing.experts_per_token)
    return [dict(zip(*row, strict=True)) for row in zip(experts.tolist(), weights.tolist(), strict=True)]


def test_the_likeliest_experts_with_their_probabilities():
    for row, found in zip(LOGITS.softmax(-1), chosen(LOGITS, Routing(experts_per_token=3)), strict=True):
        assert found == pytest.approx({i: row[i].item() for i in row.argsort(descending=True)[:3].tolist()})


def test_normalised_weights_are_the_softmax_of_the_chosen():
    normalised = chosen(LOGITS, Routing(experts_per_token=4, normalized=True, scale=2.5))
    alone = chosen(LOGITS, Routing(experts_per_token=4, score="chosen"))
    for found, wanted in zip(normalised, alone, strict=True):
        assert found == pytest.approx({expert: 2.5 * weight for expert, weight in wanted.items()})
        assert sum(found.values()) == pytest.approx(2.5)


def test_a_correction_changes_the_choice_and_not_the_weights():
    correction = torch.zeros(24)
    correction[7] = 1.0  # above all sigmoids
    correction[3] = -1.0
    for row, found in zip(
        LOGITS.sigmoid(), chosen(LOGITS, Routing(experts_per_token=2, score="sigmoid"), correction), strict=True
    ):
        assert 7 in found
        assert 3 not in found
        assert found == pytest.approx({expert: row[expert].item() for expert in found})


@pytest.mark.parametrize("scores_per_group", [1, 2])
def test_only_experts_of_the_best_groups(scores_per_group):
    routing = Routing(experts_per_token=5, num_groups=6, groups_per_token=2, scores_per_group=scores_per_group)
    for row, found in zip(LOGITS.softmax(-1), chosen(LOGITS, routing), strict=True):
        groups = row.view(6, 4)
        values = [sum(sorted(group.tolist())[-scores_per_group:]) for group in groups]
        best = sorted(range(6), key=values.__getitem__)[-2:]
        eligible = [4 * group + i for group in best for i in range(4)]
        assert set(found) == set(sorted(eligible, key=lambda i: row[i].item())[-5:])


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "chosen"])
@pytest.mark.parametrize("num_experts", [3, 8, 21])
def test_a_row_has_the_same_bits_alone(score, num_experts):
    routing = Routing(experts_per_token=3, score=score, normalized=score != "chosen")
    logits = torch.randn(33, num_experts, generator=torch.Generator().manual_seed(num_experts))
    together = route(logits, routing)
    for i in range(len(logits)):
        for whole, alone in zip(together, route(logits[i : i + 1], routing), strict=True):
            assert torch.equal(whole[i], alone[0])
