import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from pipeline.spectrogram import LogSpectrogramExtractor
from training.pictures import reconstruction_grid

SAMPLE_RATE = 22050


@pytest.fixture
def extractor():
    return LogSpectrogramExtractor(512, 256)


@pytest.fixture
def originals(rng):
    return rng.uniform(-60, 20, (3, 256, 64)).astype(np.float32)


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved, so that its axes can be asked."""
    kept = []
    save = matplotlib.figure.Figure.savefig

    def savefig(self, *arguments, **options):
        kept.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return kept


def test_axes_are_in_seconds_hertz_and_decibels(tmp_path, originals, extractor, figures):
    reconstruction_grid(tmp_path / "x.png", originals, originals - 5, ["a", "b", "c"], extractor, SAMPLE_RATE)
    *axes, colorbar = figures[0].axes

    assert len(axes) == 6
    for number, each in enumerate(axes):
        (image,) = each.images
        row, column = divmod(number, 3)
        np.testing.assert_array_equal(image.get_array(), originals[column] - 5 * row)
        # A frame is 256 samples wide, and a bin 22050 / 512 Hz high.
        assert image.get_extent() == pytest.approx([0, 64 * 256 / SAMPLE_RATE, 0, 11.025])
        assert image.origin == "lower"
        # One scale for all, so that colours compare.
        assert image.get_clim() == pytest.approx((originals.min(), originals.max()))
    assert [each.get_title() for each in axes[:3]] == ["a", "b", "c"]
    assert axes[0].get_ylabel() == "original\nfrequency (kHz)"
    assert axes[3].get_ylabel() == "reconstruction\nfrequency (kHz)"
    assert {each.get_xlabel() for each in axes[3:]} == {"time (s)"}
    assert colorbar.get_ylabel() == "level (dB)"


@pytest.mark.parametrize("n_columns", [1, 3])
def test_the_picture_is_a_png_with_a_column_each(tmp_path, originals, extractor, n_columns):
    titles = ["a", "b", "c"][:n_columns]
    reconstruction_grid(
        tmp_path / "x.png", originals[:n_columns], originals[:n_columns], titles, extractor, SAMPLE_RATE
    )
    height, width, _ = matplotlib.image.imread(tmp_path / "x.png").shape

    assert (width, height) == (240 * n_columns + 120, 600)


def test_the_same_data_is_the_same_picture(tmp_path, originals, extractor):
    pictures = []
    for offset in (0, 0, 1):
        path = tmp_path / "x.png"
        reconstruction_grid(path, originals, originals - offset, ["a", "b", "c"], extractor, SAMPLE_RATE)
        pictures.append(path.read_bytes())

    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    "name", ["$x_1$.wav", r"$\nonsense$", "a$b", r"caf\xe9.wav", "a & b #1 %.wav", "über.wav", "日本.wav"]
)
def test_any_name_is_a_title_as_it_is(tmp_path, originals, extractor, figures, name):
    reconstruction_grid(tmp_path / "x.png", originals[:1], originals[:1], [name], extractor, SAMPLE_RATE)
    title = figures[0].axes[0].title

    assert title.get_text() == name
    assert not title.get_parse_math()


def test_silence(tmp_path, extractor):
    silent = np.full((1, 256, 64), -100.0, dtype=np.float32)
    reconstruction_grid(tmp_path / "x.png", silent, silent, ["silent"], extractor, SAMPLE_RATE)

    assert (tmp_path / "x.png").stat().st_size > 1000
