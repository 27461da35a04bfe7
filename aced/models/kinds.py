"""The kinds of models, behind one protocol: two towers (CLIP, SigLIP) and CoCa.

Every kind is a module with the same functions: `build(config)`, the Flax module, which has
`encode_image` and `encode_text`; `init`, `embed`, `check_tokenizer`, `end_of_text`,
`shared_parts` and `FREE_TO_START_FROM`. A model of any kind has image and text embeddings, and
selection and most evaluations ask for no more.
"""

import types

from aced.models import coca, two_tower
from aced.models.coca import CoCaConfig
from aced.models.two_tower import TwoTowerConfig

ModelConfig = TwoTowerConfig | CoCaConfig


def kind_of(config: ModelConfig) -> types.ModuleType:
    """Returns `two_tower` or `coca`."""
    return {TwoTowerConfig: two_tower, CoCaConfig: coca}[type(config)]
