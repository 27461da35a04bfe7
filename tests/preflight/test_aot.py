import pytest

from aced.preflight import aot

GIB = 2**30


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 29.90G of 15.75G hbm. Exceeded hbm capacity by 14.15G.",
            29.9 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (200.00G) exceeds available HBM (15.75G).",
            200 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: Used 900.5M of 15.75G hbm.", 900.5 * 2**20),
        ("INTERNAL: Used 29.90G of 15.75G hbm.", None),
        ("RESOURCE_EXHAUSTED: out of vmem", None),
    ],
)
def test_needed_memory_from_the_compilers_message(message, needed):
    assert aot.needed_memory(message) == needed


class Compiler:
    """Takes `memory(b)` bytes for a batch of b; refuses what `impossible` names."""

    def __init__(self, memory, limit, impossible=()):
        self.memory, self.limit, self.impossible = memory, limit, impossible
        self.tried = []

    def __call__(self, size):
        self.tried.append(size)
        if size in self.impossible:
            return None
        used = self.memory(size)
        return aot.Attempt(size, used, used <= self.limit, 1.0)


@pytest.mark.parametrize(
    ("memory", "limit", "sizes", "best", "tries"),
    [
        # A line: half of it, then where it meets the limit.
        (lambda b: 1000 + 3 * b, 8000, range(256, 4096, 256), 2304, 2),
        # Bent, as where buffers are padded or shared: some more.
        (lambda b: 1000 + 3 * b + (b // 500) * 100, 8000, range(256, 4096, 256), 2048, 5),
        (lambda b: 50 * b**0.6, 2700, range(8, 4096, 8), 768, 7),
        # Next to what was asked for, the smallest one alone, none.
        (lambda b: 1000 + 3 * b, 13000, range(256, 4096, 256), 3840, 3),
        (lambda b: 1000 + 3 * b, 1800, range(256, 4096, 256), 256, 4),
        (lambda b: 1000 + 3 * b, 1700, range(256, 4096, 256), None, 4),
        (lambda b: 5000, 1700, range(256, 4096, 256), None, 5),
        (lambda b: 5000, 1700, (), None, 0),
    ],
)
def test_the_largest_batch_that_fits(memory, limit, sizes, best, tries):
    compiler = Compiler(memory, limit)
    first = compiler(4096)
    found = aot.largest_batch(first, list(sizes), compiler, limit)
    assert (found and found.batch_size) == best
    fitting = [size for size in sizes if memory(size) <= limit]
    assert best == max(fitting, default=None)  # by brute force
    assert len(compiler.tried) - 1 <= tries
    assert len(set(compiler.tried)) == len(compiler.tried)


def test_sizes_that_cannot_be_compiled_are_left_out():
    compiler = Compiler(lambda b: 1000 + 3 * b, 8000, impossible={2048, 2304})
    found = aot.largest_batch(compiler(4096), list(range(256, 4096, 256)), compiler, 8000)
    assert found.batch_size == 1792


def test_number_of_compilations_is_limited():
    # Steps that no line describes: what is found fits, though a larger one might, too.
    compiler = Compiler(lambda b: 1000 if b < 3000 else 9000 - b, 2000)
    found = aot.largest_batch(compiler(4096), list(range(8, 4096, 8)), compiler, 2000)
    assert found is not None
    assert found.fits
    assert len(compiler.tried) <= 9
