"""What people wrote about the pictures of a data set."""

import concurrent.futures

import numpy as np
from jaxtyping import Int

from aced.data.reader import Example, InputCounters, Reader
from aced.data.records import Source
from aced.data.sources import DataConfig


class References:
    """Captions as they are in the data set: not cut, no word unknown. Each is read once."""

    def __init__(self, source: Source, config: DataConfig):
        self._source, self._config = source, config
        self._known: dict[int, tuple[str, ...]] = {}  # by id

    def __call__(self, ids: Int[np.ndarray, " n"]) -> list[tuple[str, ...]]:
        """Of each of these examples, all; none where there are none or they cannot be read."""
        reader = Reader(self._source, self._config, InputCounters(), looks=[])

        def read(index: int) -> tuple[str, ...]:
            example = reader.read(index, need_caption=False)
            if not isinstance(example, Example):
                return ()
            return tuple(example.texts[i] for i in example.captions)

        new = [int(i) for i in ids if int(i) not in self._known]
        with concurrent.futures.ThreadPoolExecutor(max(self._config.num_threads, 1)) as pool:
            self._known |= dict(zip(new, pool.map(read, new), strict=True))
        return [self._known[int(i)] for i in ids]
