import pytest

from training.stages.evaluate import advise


@pytest.mark.parametrize(("test_mse", "is_told"), [(0.009, False), (0.01, True), (5.6, True), (float("nan"), True)])
def test_a_model_that_has_learnt_nothing_is_told_so(test_mse, is_told):
    figures = {"test_mse": test_mse, "mean_predictor_test_mse": 0.01, "pca_test_mse": 0.0095}
    assert ("than the mean" in (advise(figures) or "")) is is_told


@pytest.mark.parametrize(("test_mse", "is_told"), [(0.0019, False), (0.002, True), (0.009, True)])
def test_a_model_no_better_than_pca_is_told_so(test_mse, is_told):
    figures = {"test_mse": test_mse, "mean_predictor_test_mse": 0.01, "pca_test_mse": 0.002}
    assert ("than PCA" in (advise(figures) or "")) is is_told
