"""What a file is, by its first bytes: sound for libsndfile, a container for FFmpeg, or neither. Decodes nothing."""

from collections.abc import Callable

# Who reads a file: libsndfile, or the demuxer of FFmpeg that has the name given.
LIBSNDFILE = "libsndfile"

# As `os.pread` of an open file: how many bytes, from where.
Read = Callable[[int, int], bytes]

_HEAD_BYTES = 64
# How many frames follow each other before bytes are taken for a stream without a header.
_FRAMES = 3
# Of RIFF, IFF and CAF, with the kind of content at the ninth byte.
_CHUNKED = {
    (b"RIFF", b"WAVE"): LIBSNDFILE,
    (b"RIFX", b"WAVE"): LIBSNDFILE,
    (b"RF64", b"WAVE"): LIBSNDFILE,
    (b"FORM", b"AIFF"): LIBSNDFILE,
    (b"FORM", b"AIFC"): LIBSNDFILE,
    (b"FORM", b"8SVX"): LIBSNDFILE,
    (b"FORM", b"16SV"): LIBSNDFILE,
    (b"caff", b"desc"): LIBSNDFILE,
    (b"RIFF", b"AVI "): "avi",
}
# What of libsndfile's formats begins with letters: FLAC, AU, W64, NIST, VOC, PAF, PVF, AVR, WVE, XI.
_LIBSNDFILE_STARTS = (
    *(b"fLaC", b".snd", b"dns.", b"riff\x2e\x91\xcf\x11", b"NIST_1A", b"Creative Voice File", b"fap ", b" paf"),
    *(b"PVF1", b"2BIT", b"ALawSoundFile**", b"Extended Instrument: "),
)
_FFMPEG_STARTS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\x00\x00\x01\xba": "mpeg",
    b"FLV\x01": "flv",
    b"#!AMR": "amr",
    b"MAC ": "ape",
    b"wvpk": "wv",
    b"TTA1": "tta",
    b"MPCK": "mpc8",
    b"MP+": "mpc",
    b"DSD ": "dsf",
    b"tBaK": "tak",
}
# What the first packet of an Ogg stream begins with, where libsndfile decodes it.
_OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")
# Still and moving pictures that are kept as MP4 is: HEIF, AVIF, raw photographs.
_PICTURES = frozenset(b"heic heix heim heis hevc hevx mif1 mif2 msf1 avif avis crx".split()) | {b"crx ", b"jxl "}
_MPEG_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_RATES = (44_100, 48_000, 32_000)


def identify(read: Read) -> str | None:
    """Return who reads a file of sound: `LIBSNDFILE`, the name of FFmpeg's demuxer, or None when it is no sound.

    Parameters
    ----------
    read : callable
        As `os.pread` of the open file.
    """
    head = read(_HEAD_BYTES, 0)
    if kind := _CHUNKED.get((head[:4], head[8:12])):
        return kind
    if head.startswith(_LIBSNDFILE_STARTS):
        return LIBSNDFILE
    if head.startswith(b"ID3"):
        return _identify_tagged(head, read)
    if head.startswith(b"OggS"):
        return LIBSNDFILE if head[28:].startswith(_OGG_CODECS) else "ogg"
    for start, demuxer in _FFMPEG_STARTS.items():
        if head.startswith(start):
            return demuxer
    return _identify_atoms(head, read) or _identify_stream(read, 0) or _identify_binary(head, read)


def _identify_tagged(head: bytes, read: Read) -> str:
    """Return who reads what follows an ID3 tag, which stands before MP3 and AAC, and sometimes before others."""
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    start = 10 + size + (10 if len(head) > 5 and head[5] & 0x10 else 0)
    return _identify_stream(read, start) or LIBSNDFILE


def _identify_atoms(head: bytes, read: Read) -> str | None:
    """Return FFmpeg's demuxer of MP4 and QuickTime, which are atoms of a size and a name."""
    size, name = int.from_bytes(head[:4], "big"), head[4:8]
    if name == b"ftyp":
        return None if head[8:12] in _PICTURES else "mov"
    if name in (b"moov", b"mdat", b"wide", b"pnot") and (size == 1 or (size >= 8 and read(1, size - 1))):
        return "mov"
    return None


def _identify_stream(read: Read, start: int) -> str | None:
    """Return who reads a stream that has no header but those of its frames: MP3, AAC, or MPEG's of transport."""
    head = read(7, start)
    if len(head) == 7 and head[0] == 0xFF:
        if _frames_follow(read, start, _mpeg_frame):
            return LIBSNDFILE
        if _frames_follow(read, start, _adts_frame):
            return "aac"
    for first, step in ((0, 188), (4, 192)):
        if all(read(1, start + first + index * step) == b"\x47" for index in range(_FRAMES + 1)):
            return "mpegts"
    return None


def _frames_follow(read: Read, start: int, describe: Callable[[bytes], tuple[int, bytes] | None]) -> bool:
    """Return whether whole frames that agree with each other follow at a place; two are enough where the file ends."""
    kinds: set[bytes] = set()
    for index in range(_FRAMES):
        frame = describe(read(7, start))
        if frame is None:
            return index >= 2 and len(kinds) == 1 and not read(1, start) and bool(read(1, start - 1))
        size, kind = frame
        kinds.add(kind)
        start += size
    return len(kinds) == 1 and bool(read(1, start - 1))


def _mpeg_frame(head: bytes) -> tuple[int, bytes] | None:
    """Return size of a frame of MPEG audio, layers I to III, and what does not change from frame to frame."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version = {3: 1, 2: 2, 0: 4}.get(head[1] >> 3 & 3)  # 4: 2.5, with half of the rates of 2
    layer, bitrate, rate = 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version is None or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    kbps = _MPEG_KBPS[min(version, 2), layer][bitrate - 1]
    samples = 384 if layer == 1 else 1152 if layer == 2 or version == 1 else 576
    slot = 4 if layer == 1 else 1
    padding = head[2] >> 1 & 1
    n_slots = samples // 8 * kbps * 1000 // (_MPEG_RATES[rate] // version * slot) + padding
    return n_slots * slot, bytes((head[1] & 0xFE, rate))


def _adts_frame(head: bytes) -> tuple[int, bytes] | None:
    """Return size of a frame of AAC, and what does not change from frame to frame."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 0xF > 12:
        return None
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return (size, head[1:3]) if size >= 7 else None


def _identify_binary(head: bytes, read: Read) -> str | None:
    """Return whether libsndfile reads a format that begins with numbers: IRCAM, SDS, HTK, MPC 2000, Matlab's."""
    first = int.from_bytes(head[:4], "big")
    is_sound = (
        (first & 0xFFFFF8FF == 0x64A30000 or first & 0xFFF8FFFF == 0x0000A364)
        or first & 0xFFFF80FF == 0xF07E0001
        or _is_htk(head, read)
        # A name of 17 letters.
        or (head.startswith(b"\x01\x04") and len(head) > 20 and all(32 <= byte < 127 for byte in head[2:18]))
        # Octave's and Matlab's, of which those with this variable are sounds.
        or (b"samplerate" in head and head[:12] in (b"\0\0\3\xe8\0\0\0\1\0\0\0\1", b"\0\0\0\0\1\0\0\0\1\0\0\0"))
        or (head.startswith(b"MATLAB 5") and b"samplerate" in read(128, 128))
    )
    return LIBSNDFILE if is_sound else None


def _is_htk(head: bytes, read: Read) -> bool:
    """Return whether the number of samples of 16 bits agrees with the size of the file."""
    size = 12 + 2 * int.from_bytes(head[:4], "big")
    return head[8:12] == b"\0\2\0\0" and bool(read(1, size - 1)) and not read(1, size)
