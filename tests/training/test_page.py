import base64
import io
import json
import re

import matplotlib as mpl
import numpy as np
import pytest
import soundfile as sf
from PIL import Image

from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import N_SAMPLES, SAMPLE_RATE, sine
from training.page import SoundWriter, figure_rows, label_colours, map_svg, render, spectrogram_png


def content_of(address, media_type):
    head, _, content = address.partition(",")
    assert head == f"data:{media_type};base64"
    return base64.b64decode(content)


def test_a_sound_comes_back_from_its_address(rng):
    writer = SoundWriter(LogSpectrogramExtractor().extract, SAMPLE_RATE)
    y = rng.uniform(-0.9, 0.9, N_SAMPLES).astype(np.float32)
    found, sample_rate = sf.read(io.BytesIO(content_of(writer.audio(y), "audio/flac")), dtype="float32")

    assert sample_rate == SAMPLE_RATE
    np.testing.assert_allclose(found, y, atol=1 / 32768)


def test_a_sine_is_a_line_at_its_height():
    """Low frequencies are at the bottom, and the loudest is the palette's last colour."""
    writer = SoundWriter(LogSpectrogramExtractor().extract, SAMPLE_RATE)
    address = writer.sound(sine(2000.0), "a sine")["image"]
    picture = np.asarray(Image.open(io.BytesIO(content_of(address, "image/png"))).convert("RGB"))

    assert picture.shape == (256, 64, 3)
    assert set(picture[:, 5:-5].sum(axis=2, dtype=int).argmax(axis=0)) == {255 - round(2000 * 512 / SAMPLE_RATE)}
    brightest = np.array(mpl.colormaps["magma"](255, bytes=True)[:3])
    assert (picture == brightest).all(axis=2).any()


def test_silence_is_dark():
    address = spectrogram_png(np.full((8, 4), -100.0, dtype=np.float32))
    picture = np.asarray(Image.open(io.BytesIO(content_of(address, "image/png"))).convert("RGB"))

    assert (picture == np.array(mpl.colormaps["magma"](0, bytes=True)[:3])).all()


@pytest.mark.parametrize("n", [1, 2, 10, 11, 42, 100])
def test_each_label_has_a_colour_of_its_own(n):
    colours = label_colours([f"label {number % n}" for number in range(2 * n)])

    assert len(colours) == len(set(colours.values())) == n
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values())


def test_the_map_is_the_same_again_and_names_its_points(rng):
    points = rng.uniform(size=(6, 2))
    svg = map_svg(points, ["#123456"] * 6)

    assert svg == map_svg(points, ["#123456"] * 6)
    assert svg.startswith("<svg")
    assert re.findall(r'id="(point-\d+)"', svg) == [f"point-{number}" for number in range(6)]
    places = [tuple(map(float, each)) for each in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)]
    # Affine, with y downwards.
    for axis, sign in ((0, 1), (1, -1)):
        assert np.corrcoef(np.array(places)[:, axis], points[:, axis])[0, 1] == pytest.approx(sign, abs=1e-6)


def test_names_cannot_leave_the_data():
    names = ["</script><b>", "<!--", "$style ${data}", "\u2028", "für 日本"]
    text = render({"names": names}, "<svg></svg>")
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)

    assert json.loads(data) == {"names": names}
    assert text.count("</script>") == 2
    assert "<svg></svg>" in text


def test_figures_stand_beside_pcas_with_their_intervals():
    figures = {}
    for key in ("mse", "psnr_db", "log_spectral_distance_db", "multi_resolution_stft", "spectral_convergence_db"):
        figures |= {
            f"{p}test_{key}{s}": v
            for p, b in (("", 1), ("pca_", 4), ("difference_", -3))
            for s, v in (("", b), ("_low", b + 1), ("_high", b + 2))
        }
    rows = figure_rows(figures)

    assert len(rows) == 5
    assert rows[0][1:] == (
        "1.00000 (2.00000 to 3.00000)",
        "4.00000 (5.00000 to 6.00000)",
        "-3.000000 (-2.000000 to -1.000000)",
    )
    figures["difference_test_mse_high"] = -1e-9
    assert figure_rows(figures)[0][3] == "-3.000000 (-2.000000 to +0.000000)"
