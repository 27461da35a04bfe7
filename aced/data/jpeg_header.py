"""What a JPEG says about itself before its pixels, ten times faster than by opening it."""

import dataclasses

_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive; the rest is rare
_SCAN = 0xDA
_NOTE = 0xE1  # APP1: EXIF or XMP
_ALONE = (0x01, 0xFF, *range(0xD0, 0xDA))  # markers without a segment, and padding


@dataclasses.dataclass(frozen=True)
class JpegHeader:
    """Of a JPEG of 8 bits, in grey or in colours that libjpeg-turbo turns to RGB."""

    width: int  # as stored
    height: int
    has_note: bool  # there may be an orientation


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Returns the header of an ordinary JPEG; None for whatever else, which Pillow has to judge."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame, has_note, position = None, False, 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _ALONE:
            return None
        if marker == _SCAN:
            return frame and JpegHeader(*frame, has_note)
        if marker in _FRAMES:
            fields = data[position + 4 : position + 10]
            if frame is not None or len(fields) < 6 or fields[0] != 8 or fields[5] not in (1, 3):
                return None
            height, width = fields[1] << 8 | fields[2], fields[3] << 8 | fields[4]
            if not height or not width:
                return None
            frame = width, height
        has_note |= marker == _NOTE
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None
