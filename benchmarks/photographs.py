"""Pictures with the spectrum of photographs, drawn here."""

import io

import numpy as np
from PIL import Image


def draw(side: int, seed: int) -> bytes:
    """A JPEG of noise whose amplitude falls a little faster than 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((3, side, side))) / frequency**1.3
    planes = np.fft.irfft2(noise, (side, side))
    planes = 0.4 * planes + 0.8 * planes[:1]  # mostly grey
    pixels = np.clip(127 + 45 * planes / planes.std(), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "JPEG", quality=90, subsampling=2)
    return out.getvalue()
