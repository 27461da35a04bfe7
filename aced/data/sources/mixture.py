"""Several data sets as one, with weights."""

import bisect
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, SupportsIndex

from aced.data.records import Source, check_index


@dataclasses.dataclass(frozen=True)
class Part:
    """A member of a mixture."""

    name: str
    source: Source
    weight: float  # of the rows, relative to the others
    start: int  # index of its first example in the mixture

    @property
    def end(self) -> int:
        """Index after its last example in the mixture."""
        return self.start + len(self.source)


class Mixture:
    """The examples of all members, one member after another; see `Source`.

    An example's id is its index in the mixture, which does not depend on the weights. Those are
    used by `order.MixedOrder`.

    Attributes:
        parts: the members.
        class_names: of the labels, if all members have the same ones; else None.
    """

    def __init__(self, members: Mapping[str, tuple[Source, float]]):
        """Joins `members`: source and weight by name."""
        self.parts: list[Part] = []
        for name, (source, weight) in members.items():
            self.parts.append(Part(name, source, weight, self.parts[-1].end if self.parts else 0))
        self.name = "+".join(members)
        prints = "\n".join(f"{part.name} {part.source.fingerprint}" for part in self.parts)
        self.fingerprint = f"mixture {hashlib.sha256(prints.encode()).hexdigest()}"
        names = [getattr(source, "class_names", None) for source, _ in members.values()]
        self.class_names = names[0] if all(other == names[0] for other in names) else None
        self._starts = [part.start for part in self.parts]

    def __len__(self) -> int:
        return self.parts[-1].end

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example `index`, see `Source`, with the number of its member as `source`."""
        index = check_index(self, index)
        number = bisect.bisect_right(self._starts, index) - 1
        part = self.parts[number]
        example = part.source[index - part.start]
        key = f"{part.name}/{example.get('key', index - part.start)}"  # shapes have none
        return {**example, "id": index, "key": key, "source": number}
