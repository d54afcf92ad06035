"""How much faster than real time a lockstep run is: the whole line in one process, starting up included."""

import time

from dzedge.config import default_path, load
from dzedge.lockstep import run_lockstep
from dzedge.robot import verified_bundle

WANTED = 5.0
SECONDS = 20.0


def run() -> list[dict[str, object]]:
    """The `lockstep` row: simulated seconds a second of wall time and of CPU time, best of three."""
    config = load(default_path())
    bundle = verified_bundle(config)
    walls, cpus = [], []
    for seed in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        run_lockstep(config, bundle, task=None, seed=seed, duration_s=SECONDS, on_status=lambda status: None)
        walls.append(SECONDS / (time.perf_counter() - wall))
        cpus.append(SECONDS / (time.process_time() - cpu))
    factor = max(walls)
    return [
        {
            "id": "lockstep",
            "value": round(factor, 2),
            "unit": "x real time",
            "rival": f"{WANTED:g}x real time (by CPU time we are at {max(cpus):.1f}x)",
            "ratio": round(WANTED / factor, 3),
            "bar": 1.0,
            "ok": factor >= WANTED,
        }
    ]
