"""Containers that tests make with FFmpeg."""

import av
import numpy as np

# Samples of 16 bits, where a codec would take others first.
_SAMPLE_FORMATS = {"wavpack": "s16p", "tta": "s16"}
_FRAME = 4096


def write_container(path, y, sample_rate, codec, format=None, n_tracks=1, video=False, **options):
    """Write a signal (n_samples,) or (n_samples, n_channels) as a track of a container, and return its path.

    Further tracks hold silence. `video` is for what stands before it: a track of pictures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    y = y.reshape(len(y), -1).astype(np.float32)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[y.shape[1]]
    with av.open(str(path), "w", format=format, container_options=options) as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 32
        # AAC's noise is drawn by the decoder; without it, what comes out is a function of the file.
        wanted = {"aac_pns": "0"} if codec == "aac" else {}
        tracks = [container.add_stream(codec, rate=sample_rate, layout=layout, options=wanted) for _ in range(n_tracks)]
        for track in tracks:
            track.format = _SAMPLE_FORMATS.get(codec, track.format.name)
        if video:
            for index in range(max(1, 10 * len(y) // sample_rate)):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index % 256, dtype=np.uint8), format="rgb24")
                container.mux(pictures.encode(frame.reformat(format="yuv420p")))
            container.mux(pictures.encode(None))
        for index, track in enumerate(tracks):
            for frame in _frames(y if index == 0 else np.zeros_like(y), sample_rate, layout, track.format.name):
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def _frames(y, sample_rate, layout, sample_format):
    """Yield a signal as frames of a codec's sample format."""
    resampler = av.AudioResampler(format=sample_format, layout=layout, rate=sample_rate)
    for start in range(0, len(y), _FRAME):
        block = np.ascontiguousarray(y[start : start + _FRAME].T)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate = sample_rate
        frame.pts = start
        yield from resampler.resample(frame)
    yield from resampler.resample(None)
