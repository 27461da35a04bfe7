"""Published costs and latencies of models, for comparison. None was measured by us."""

import dataclasses

_ACED = "arXiv 2411.18674, from secondary summaries"
_LATER = "a later comparison with MobileCLIP2, from secondary summaries"
_BOTH = f"GMAC: {_ACED}; ms: {_LATER}"


@dataclasses.dataclass(frozen=True)
class Published:
    """What was published about a model. The hardware of the latencies is that of their authors."""

    model: str
    gmacs: float | None  # 1e9 multiply-adds of a picture and a text together
    image_ms: float | None
    text_ms: float | None
    source: str


MODELS = (
    Published("ACED-F0", 3.30, 2.1, 1.8, _BOTH),
    Published("ACED-F1", 7.14, 6.2, 1.8, _BOTH),
    Published("ACED-F2", 10.29, 6.5, 1.8, _BOTH),
    Published("MobileCLIP-S0", 3.70, None, None, _ACED),
    Published("MobileCLIP-S1", 7.64, None, None, _ACED),
    Published("MobileCLIP-S2", 10.81, None, None, _ACED),
    Published("DataComp ViT-B/32, 256 px", None, 6.2, 3.3, _LATER),
)
