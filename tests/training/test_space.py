"""What a search draws from, as written on a command line."""

import numpy as np
import pytest

from pipeline.errors import ParameterError
from training.space import parse_space, with_values


def test_draws_lie_in_their_distributions(params, rng):
    texts = [
        "train.learning_rate=loguniform(1e-4, 1e-2)",
        "autoencoder.latent_space_dim = choice(16, 32)",
        "train.schedule=choice(cosine, constant)",
        "autoencoder.conv_strides=choice([[4, 2], 2], [2, 2])",
        "train.warmup_epochs=uniform(0.5, 1)",
        "train.patience=randint(2, 5)",
    ]
    space = parse_space(texts, params)
    draws = {name: [domain.sample(random_state=rng) for _ in range(400)] for name, domain in space.items()}

    assert list(space) == [text.partition("=")[0].strip() for text in texts]
    assert set(draws["autoencoder.latent_space_dim"]) == {16, 32}
    assert set(draws["train.schedule"]) == {"cosine", "constant"}
    assert {str(each) for each in draws["autoencoder.conv_strides"]} == {"[[4, 2], 2]", "[2, 2]"}
    assert set(draws["train.patience"]) == {2, 3, 4}
    rates = np.array(draws["train.learning_rate"])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    assert np.median(rates) == pytest.approx(1e-3, rel=0.4)
    assert 0.5 <= min(draws["train.warmup_epochs"]) < max(draws["train.warmup_epochs"]) <= 1
    for place in range(20):
        changed = with_values(params, {name: drawn[place] for name, drawn in draws.items()})
        assert changed.train.patience == draws["train.patience"][place]
        assert changed.preprocess == params.preprocess


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.learning_rate",
            r"--space 'train.learning_rate' must be name=distribution\(values\), of choice, uniform",
        ),
        ("train.learning_rate=normal(0, 1)", r"must be name=distribution\(values\), of choice, uniform"),
        ("train.learning_rate=loguniform(1e-4)", r"--space 'train.learning_rate=loguniform\(1e-4\)': .*upper"),
        ("train.learning_rate=loguniform(0, 1)", r"--space 'train.learning_rate=loguniform\(0, 1\)': "),
        ("train.learning_rate=uniform(-1, 1)", "train.learning_rate=-1.*greater than 0"),
        ("train.rate=uniform(0, 1)", "train.rate is no parameter of the sections autoencoder and train"),
        ("preprocess.n_fft=choice(256, 512)", "preprocess.n_fft is no parameter of the sections autoencoder and train"),
        ("train.schedule=choice(cosine, linear)", "train.schedule=linear: .*'constant' or 'cosine'"),
        (
            "train.warmup_epochs=uniform(1, 9)",
            r"train.warmup_epochs=9: .*warmup_epochs=9.0 must be fewer than epochs=4",
        ),
        ("train.seed=choice([1, 2)", r"--space 'train.seed=choice\(\[1, 2\)': "),
    ],
)
def test_what_is_no_distribution_of_a_parameter_is_refused(params, text, message):
    with pytest.raises(ParameterError, match=message) as caught:
        parse_space([text], params)
    assert len(str(caught.value).splitlines()) == 1
