"""A tiny ACED run as a config file for the command: `--config=tests/small_run.py:reference=PATH`.

Eight strata, so that devices choose from their own candidates; evaluations in the middle and at
the end; a line of metrics and of picks after every step. Without a reference it is the plain run
that makes one. With `score_ahead` it scores that number of steps ahead, from small pictures.
"""

import ml_collections

from aced.config import parse_arg
from configs import smoke

STEPS = 30


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, reference="", score_ahead=0)
    method = "aced,online" if arg.reference else "iid"
    config = smoke.get_config(f"method={method},tiny")
    config.total_steps = STEPS if arg.reference else 2
    config.checkpoint.every_steps = 3
    config.data.num_threads = 2
    config.before = {}
    if arg.reference:
        config.method.reference.checkpoint = arg.reference
        config.method.selection.strata = 8
        config.data.shapes.wrong = 0.5
    else:
        config.evals = {}
    if arg.score_ahead:
        config.method.score_ahead = arg.score_ahead
        config.method.scoring.resolution = config.method.model.image.resolution // 2
    return config
