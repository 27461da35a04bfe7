"""What is known of an image once it was examined: all that dedup, order and shards are made of.

Facts travel between steps in place of pixels, as bytes of msgpack: a runner ships them to other
machines, and its fall-back for objects is pickle.
"""

import dataclasses

import msgpack

from aced.prepare.captions import CaptionedImage


@dataclasses.dataclass
class Facts(CaptionedImage):
    """A captioned image that was examined, and where its bytes are kept meanwhile."""

    block: int  # the spool that has its bytes
    offset: int  # where they begin in it
    size: int  # how many they are
    thumbnail_size: int  # the bytes that follow them; 0: there is no thumbnail
    second_size: int  # and those of a second picture that follow; 0: there is none
    crc: int  # CRC-32 of all these bytes, one behind the other
    sha256: bytes  # of the image's bytes, and of the second one's behind them
    width: int  # pixels, as stored
    height: int
    anew: bool  # whether it was encoded anew
    look: bytes  # perceptual hash; empty where none is asked for
    miniature: bytes  # what two looks that are alike are verified by; empty likewise

    @property
    def image_bytes(self) -> int:
        """Of both pictures."""
        return self.size + self.second_size


def pack(image: CaptionedImage) -> bytes:
    """Returns `image`, of this class or of `Facts`, as bytes."""
    fields = [getattr(image, field.name) for field in dataclasses.fields(image)]
    return msgpack.packb(fields, use_bin_type=True)


def unpack_captions(data: bytes) -> CaptionedImage:
    """Returns the captioned image that `pack` wrote."""
    return CaptionedImage(*msgpack.unpackb(data))


def unpack(data: bytes) -> Facts:
    """Returns the facts that `pack` wrote."""
    return Facts(*msgpack.unpackb(data))
