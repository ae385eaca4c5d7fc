"""A job of many samples, for tests that kill it: `KIND PLACE LOG [PROCESS NUM_PROCESSES PORT]`."""

import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np


NUM, SHAPE, BATCH = 1203, (1, 4, 4), 4
LABELS = np.arange(NUM) % 10


def main(kind, place, log, process="0", num_processes="1", port="0"):
    jax.config.update("jax_num_cpu_devices", 2)
    if num_processes != "1":
        jax.distributed.initialize(
            f"127.0.0.1:{port}", int(num_processes), int(process), heartbeat_timeout_seconds=10
        )
    # Not before: it would start the devices.
    import eqdiff as eqd

    original = eqd._chunks.program

    def logged(*args):
        if not isinstance(args[2], jax.core.Tracer):
            with open(log, "a") as file:
                file.write(f"{process} {np.asarray(args[2])[0]}\n")
        return original(*args)

    eqd._chunks.program = logged
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50), 0.2, 0.5)
    call = (eqd.DDIM(3, eta=1.0), denoiser, NUM, SHAPE)
    options = {"key": jax.random.key(7), "batch_size": BATCH, "mesh": mesh}
    path = Path(place)
    if kind == "npz":
        eqd.generate_to(eqd.data.NPZWriter(path / "x.npz", labels=LABELS), *call, **options)
    elif kind == "png":
        eqd.generate_to(eqd.data.PNGWriter(path / "png", labels=LABELS), *call, **options)
    elif kind == "memory":
        np.save(path / f"result{process}.npy", eqd.generate(*call, **options))
    elif kind == "folder":
        result = eqd.generate(*call, folder=path / "chunks", **options)
        np.save(path / f"result{process}.npy", result)
    else:
        assert kind == "failures"
        np.save(path / f"result{process}.npy", failing(eqd, mesh))


def failing(eqd, mesh):
    """Some examples fail, each in one process; all processes hear of all."""

    def checked(x, key):
        return eqx.error_if(2 * x, x % 100 == 17, "no such number")

    try:
        eqd.map_examples(
            checked,
            np.arange(400, dtype=np.int32),
            key=jax.random.key(7),
            batch_size=BATCH,
            mesh=mesh,
        )
    except eqd.FailedExamples as error:
        assert sorted(error.errors) == [17, 117, 217, 317]
        return error.results
    raise AssertionError("no failures")


if __name__ == "__main__":
    main(*sys.argv[1:])
