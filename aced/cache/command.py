"""Makes the embeddings of the data set of a run."""

import jax

from aced.cache.config import CacheConfig
from aced.cache.description import Description
from aced.config import Settings
from aced.parallel import mesh as meshes
from aced.parallel.watchdog import Watchdog
from aced.train import caches
from aced.train.config import parse


def run(
    config: Settings,
    cache: CacheConfig,
    workdir: str,
    devices: list[jax.Device] | None = None,
    *,
    force: bool = False,
) -> Description:
    """Makes the cache, or resumes it; all processes call this.

    Args:
        config: the config of the run that will use the cache, as for `loop.run`.
        cache: the settings of the cache.
        workdir: replaces "{workdir}" in the config.
        devices: the devices to use; None: all.
        force: take the folder over from another process that is known to be dead.

    Raises:
        See `caches.make`.
    """
    settings = parse(config)
    mesh = meshes.make_mesh(devices, settings.mesh)
    with jax.set_mesh(mesh), Watchdog(settings.watchdog_minutes) as watchdog:
        return caches.make(settings, cache, workdir, mesh, watchdog, force=force)
