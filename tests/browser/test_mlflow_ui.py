"""What a person sees of runs in `make ui`: comparison, curves, pictures by epoch, sounds that play."""

import pytest

from training import tracking

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def experiment(runs):
    with tracking.connect() as client:
        return client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id


def test_two_runs_side_by_side(page, server, runs, experiment, screenshot):
    first, second = runs[1]
    page.goto(f'{server}/#/compare-runs?runs=["{first}","{second}"]&experiments=["{experiment}"]')
    for text in ("latent 16", "latent 64"):
        page.get_by_text(text).first.wait_for()
    row = page.locator("tr", has_text="autoencoder.latent_space_dim").first
    row.wait_for()

    assert [text.strip() for text in row.locator("td").all_inner_texts()][-2:] == ["16", "64"]
    page.get_by_text("pca_test_mse", exact=True).first.wait_for(state="attached")
    screenshot(page, "mlflow_compare")


def test_curves_of_training_and_validation(page, server, experiment, screenshot):
    # Tall, since charts are drawn when they come into view.
    page.set_viewport_size({"width": 1800, "height": 3000})
    page.goto(f"{server}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
    for name in ("train_mse", "val_mse", "test_mse", "pca_test_mse"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for(state="attached")
    page.set_viewport_size({"width": 1800, "height": 1000})
    screenshot(page, "mlflow_curves")


def test_pictures_by_epoch(page, server, runs, experiment):
    page.goto(f"{server}/#/experiments/{experiment}/runs/{runs[1][0]}/artifacts/images")
    page.get_by_text("validation").first.wait_for()
    for epoch in (2, 6, 10):
        page.get_by_text(f"validation+step+{epoch}+").first.wait_for()


def test_a_sound_plays(page, server, runs, experiment, screenshot):
    page.goto(f"{server}/#/experiments/{experiment}/runs/{runs[1][0]}/artifacts/evaluate/01_note.original.wav")
    audio = page.locator("audio").first
    audio.wait_for(state="attached")
    audio.evaluate("element => { element.muted = true; return element.play(); }")
    page.wait_for_timeout(1500)

    assert audio.evaluate("element => element.currentTime") > 0.1
    assert audio.evaluate("element => element.error === null && element.duration") == pytest.approx(2.96, abs=0.01)
    screenshot(page, "mlflow_sound")
