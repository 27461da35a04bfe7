"""The beginning of a run that scores ahead: the super-batches that no earlier step has scored."""

import numpy as np

from aced.data.picks import CANDIDATES, PicksAhead
from aced.data.pipeline import InputCounters
from aced.metrics.progress import announced
from aced.optim.state import TrainState
from aced.parallel import mesh as meshes
from aced.train.setup import Run, stream_batches


def begin(run: Run, counters: InputCounters, picks: PicksAhead) -> TrainState:
    """Returns the state before the next step, and adds the picks that it holds to `picks`.

    A new run first scores as many super-batches as its method is ahead, with the initial
    parameters. The state of a method that scores nothing ahead is unchanged.

    Args:
        run: a run; its state is used up.
        counters: counts skipped records.
        picks: takes the picks of the next super-batches.
    """
    state, ahead = run.state, run.program.method.ahead
    if ahead and run.start is None:
        with (
            announced("Scoring the first candidates"),
            stream_batches(run, CANDIDATES, -ahead, counters, steps=ahead) as batches,
        ):
            for number, rows in enumerate(batches):
                batch = meshes.global_batch(rows, run.program.mesh)
                state = run.program.score_first(state, run.frozen, batch, np.int32(number))
    if ahead:
        for known in np.asarray(state.method):
            picks.put(known)
    return state
