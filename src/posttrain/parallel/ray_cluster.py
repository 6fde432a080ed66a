"""The Ray cluster of this machine or of ``RAY_ADDRESS``; where there is none, one of this machine that ends with this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from posttrain.errors import ConfigError, RunError


def connected(processors: int, where: str, note: Callable[[str], None] = lambda text: None) -> Any:
    """The package ray, connected to a cluster; one of so many processors is started here where none runs, and ``note`` is told.

    Raises ConfigError, at ``where``, where Ray is not installed, and RunError where the cluster can't be reached.
    """
    try:
        import ray
    except ImportError as error:
        fix = "pip install 'posttrain[ray]'"
        raise ConfigError("the engine ray needs the package ray", where=where, fix=fix) from error
    if ray.is_initialized():
        return ray
    named = os.environ.get("RAY_ADDRESS", "")
    if named.startswith("ray://"):
        fix = "run it on a machine of the cluster, for example by: ray job submit -- posttrain run ..."
        raise ConfigError("a cluster can't be used through Ray's client", where=f"RAY_ADDRESS={named}", fix=fix)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if named not in ("", "local"):
            ray.init(**quiet)
        elif _began_own(ray, processors, quiet):
            note(f"no Ray cluster runs here: a local one ({processors} processors) was started, and ends with this run")
    except (ConnectionError, RuntimeError, ValueError) as error:
        where, reason = f"RAY_ADDRESS={named}" if named else "ray", str(error).strip().splitlines()[0]
        fix = "start it (ray start --head), with RAY_AUTH_MODE=token here where it asks for a token; or unset RAY_ADDRESS, and end what is left here (ray stop)"
        raise RunError(f"the Ray cluster can't be used: {reason}", where=where, fix=fix) from error
    return ray


def _began_own(ray: Any, processors: int, quiet: dict[str, Any]) -> bool:
    """Connect to the cluster that ``ray start`` has begun on this machine; where there is none, begin one, and return True.

    Not by the address ``auto``, which would take the cluster of any other process and end when that ends.
    """
    try:
        ray.init(num_cpus=processors, include_dashboard=False, **quiet)
        return True
    except ValueError:  # there is one, which has its own number of processors
        ray.init(**quiet)
        return False
