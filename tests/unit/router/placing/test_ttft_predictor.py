import pytest

from baton.errors import Overloaded
from router.placing.admission import MAX_RETRY_AFTER_S
from router.placing.ttft_predictor import TTFT_MARGIN, TtftPredictor


def test_the_wait_follows_how_fast_the_line_moves() -> None:
    predictor = TtftPredictor()
    assert predictor.wait_ms(1000.0, 2) == 500
    predictor.placed(1e6, 0.0)  # who never was held back says nothing
    assert predictor.wait_ms(1000.0, 2) == 500
    predictor.held_back(0.0)
    for i in range(1, 60):
        predictor.placed(100.0, i * 0.5)  # a fifth of what one node could do
    assert predictor.wait_ms(1000.0, 1) == pytest.approx(5000, rel=0.35)
    predictor.emptied()
    predictor.held_back(1000.0)
    predictor.placed(100.0, 1000.1)
    assert predictor.wait_ms(1000.0, 1) < 1200


def test_a_refusal_says_when_to_retry() -> None:
    check_ttft = TtftPredictor().check_ttft
    check_ttft(5.0 / TTFT_MARGIN, 5.0)
    with pytest.raises(Overloaded) as refusal:
        check_ttft(9.5 / TTFT_MARGIN, 5.0)
    assert (refusal.value.retry_after_s, refusal.value.status) == (pytest.approx(4.5), 429)
    with pytest.raises(Overloaded) as refusal:
        check_ttft(1e9, 5.0)
    assert refusal.value.retry_after_s == MAX_RETRY_AFTER_S


def test_predictions_are_trusted_as_far_as_they_held() -> None:
    predictor = TtftPredictor()
    for _ in range(50):
        predictor.came(2.0, 3.0, 0.0)
    assert predictor.margin == pytest.approx(1.5, abs=0.02)
    predictor.check_ttft(1.0, 1.6)
    with pytest.raises(Overloaded):
        predictor.check_ttft(1.0, 1.4)
    for _ in range(250):
        predictor.came(1.0, 0.9, 0.0)
    assert 1.3 < predictor.margin < 1.4  # falls slowly
    predictor.came(1.0, 1e9, 0.0)
    assert predictor.margin < 2
    for _ in range(1000):
        predictor.came(1.0, 0.01, 0.0)
    assert predictor.margin == 1.0
    predictor.came(0.0, 5.0, 0.0)  # nothing was predicted
    assert predictor.margin == 1.0


def test_how_long_queues_of_nodes_really_take_is_learnt_from_those_that_took_a_while() -> None:
    predictor = TtftPredictor()
    for _ in range(200):
        predictor.began(0.001, 0.05, 0.0)
    assert predictor.slowness == 1.0
    for _ in range(200):
        predictor.began(0.3, 0.9, 0.0)
    assert predictor.slowness == pytest.approx(3.0, abs=0.01)
    for _ in range(200):
        predictor.began(0.0, 5.0, 0.0)
    assert predictor.slowness == pytest.approx(8.0, abs=0.01)  # and no more


def test_an_overload_is_forgotten_when_it_is_over() -> None:
    predictor = TtftPredictor()
    for _ in range(200):
        predictor.began(0.1, 1.0, 50.0)
        predictor.came(1.0, 4.0, 50.0)
    predictor.forget(55.0)
    assert predictor.slowness > 7
    assert predictor.margin > 3
    predictor.forget(65.0)
    assert (predictor.slowness, predictor.margin) == (1.0, TTFT_MARGIN)


def test_requests_that_give_up_raise_the_predictions() -> None:
    predictor = TtftPredictor()
    for _ in range(50):
        predictor.gave_up(
            2.0 / predictor.margin, 2.0, 0.0
        )  # as long as it had been admitted for, which alone would teach nothing
    assert predictor.margin > 2
