import pytest

from training.stages.evaluate import advise


@pytest.mark.parametrize(("test_mse", "is_told"), [(0.009, False), (0.01, True), (5.6, True), (float("nan"), True)])
def test_a_model_that_has_learnt_nothing_is_told_so(test_mse, is_told):
    assert bool(advise({"test_mse": test_mse, "mean_predictor_test_mse": 0.01})) is is_told
