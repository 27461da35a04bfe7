"""Prints by how many bytes memory grows while each of the files that are named is decoded."""

import os
import resource
import sys

from aced.data.images.decode import decode

small, *files = sys.argv[1:]
with open(small, "rb") as file:
    decode(file.read())  # what is made once does not count
for name in files:
    with open(name, "rb") as file:
        data = file.read()
    if (child := os.fork()) == 0:  # whose peak begins at what there is
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decode(data)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{name} was not decoded.")
