"""What an H100 would run, found without one: kernels, bytes moved and the time they take at least.

    python benchmarks/h100.py --setup                     # how to make an environment for it, once
    python benchmarks/h100.py                             # iDDPM's CIFAR-10 network, all programs
    python benchmarks/h100.py --small --program train     # one block per level: in half a minute
    python benchmarks/h100.py --program train --by-op 40  # what to fuse next
    python benchmarks/h100.py --from-tree ../other        # another checkout of eqdiff

XLA compiles for a chip that is only described, and its program is read: `_hlo.py` says how kernels
and bytes are counted, `_roofline.py` how long they take at least. Fusions, layouts, copies and
bytes are those of the chip. Autotuning needs one and is off, so that Triton's tiles and cuDNN's
algorithms are defaults; what cannot be seen at all is what Python costs, what launches cost beyond
4 μs each, and which of them command buffers take away. `gpu_suite.py` measures those.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from _hlo import Kernel, kernels, parse
from _roofline import grouped, H100, source_of, table, Totals, totals
from _tree import use_tree


PROGRAMS = ("train", "forward", "sampler", "likelihood")

# As `Target.topology` of XLA describes an H100 80GB HBM3.
_DESCRIPTION = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_SETUP = """An environment of its own, about 3 GB; no GPU and no driver are needed:

    python -m venv h100-env
    h100-env/bin/pip install 'jax[cuda13]' equinox diffrax optax einops jaxtyping
    h100-env/bin/python benchmarks/h100.py
"""


class Row(NamedTuple):
    """One program of one network."""

    preset: str
    program: str
    batch: int
    totals: Totals
    kernels: list[Kernel]
    compile_seconds: float
    gibibytes: float


def prepare_environment() -> None:
    """What JAX reads when it is imported; leaves with a hint where its CUDA plug-in is missing."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise SystemExit(f"{sys.executable} has no CUDA plug-in for JAX.\n\n{_SETUP}")
    nvidia = importlib.util.find_spec("nvidia")
    folders = [] if nvidia is None else list(nvidia.submodule_search_locations or [])
    flags = ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false"]
    flags += [f"--xla_gpu_cuda_data_dir={folder}/cu13" for folder in folders[:1]]
    # Flags of the user's own come last, so that they win.
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
    os.environ["JAX_PLATFORMS"] = "cpu,cuda"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # Checks at run time call the host, which a program for a described chip cannot.
    os.environ["EQX_ON_ERROR"] = "nan"


def compile_for_h100(program: Any) -> Any:
    """A program of `_programs.py`, compiled for one H100."""
    import jax
    import numpy as np
    from _programs import flatten
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=_DESCRIPTION, topology="1x1x1"
    )
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("data",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    flat = flatten(program)
    specs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), (flat.given, flat.lent)
    )
    donated = (0,) if program.donates else ()
    return jax.jit(flat.fn, donate_argnums=donated, out_shardings=where).lower(*specs).compile()


def one_turn(found: list[Kernel], turns: int) -> list[Kernel]:
    """The kernels of one turn of the loop, where that is what is measured."""
    if turns == 1:
        return found
    inside = [k._replace(times=k.times // turns) for k in found if k.times % turns == 0]
    if not inside:
        raise ValueError(f"no kernel runs {turns} times: the loop's number of turns is not known.")
    return inside


def measure(name: str, program_name: str, options: argparse.Namespace) -> Row:
    """Compiles one program and reads it."""
    from _programs import abstract_programs, SETTINGS

    setting = SETTINGS[name]
    network = setting.small if options.small else {}
    programs = abstract_programs(setting, options.batch, options.dtype, network)
    program = programs[program_name]()
    start = time.perf_counter()
    compiled = compile_for_h100(program)
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    if options.hlo is not None:
        options.hlo.mkdir(parents=True, exist_ok=True)
        (options.hlo / f"{name}_{program_name}.hlo").write_text(text)
    found = one_turn(kernels(parse(text)), program.turns)
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Row(name, program_name, options.batch, totals(found), found, seconds, needed / 2**30)


HEADER = (
    "| network | program | kernels | GB | outside convolutions, GB | GFLOP | floor, ms "
    "| estimate, ms | images/s | of peak | memory, GiB |\n|---|---|" + "---:|" * 9
)


def markdown(row: Row) -> str:
    """One row of the table under `HEADER`."""
    t = row.totals
    rate = 1e3 * row.batch / t.estimate_ms
    share = t.gigaflop * 1e9 / (1e-3 * t.estimate_ms * H100.peak["bf16"])
    return (
        f"| {row.preset} | {row.program} | {t.kernels:,} | {t.gigabytes:.1f} | {t.outside:.1f} "
        f"| {t.gigaflop:,.0f} | {t.floor_ms:.1f} | {t.estimate_ms:.1f} | {rate:,.0f} "
        f"| {100 * share:.0f} % | {row.gibibytes:.1f} |"
    )


def details(row: Row, by_op: int) -> str:
    """The parts of a program, and what one reads to find what to fuse."""
    tables = [
        table(grouped(row.kernels, lambda k: k.part)),
        table(grouped(row.kernels, lambda k: f"{k.part}: {k.group}")),
    ]
    if by_op:
        tables += [
            table(grouped(row.kernels, lambda k: k.kind), by_op),
            table(
                grouped(
                    row.kernels,
                    lambda k: f"{k.part}: {k.group}, `{k.op}`, {source_of(k)}".rstrip(", "),
                ),
                by_op,
            ),
        ]
    return "\n\n".join([f"### {row.preset}, {row.program}", *tables])


def as_json(row: Row) -> dict[str, Any]:
    """A row for a file: totals, also by part and by group of each part."""
    return {
        "preset": row.preset,
        "program": row.program,
        "batch": row.batch,
        "compile_seconds": row.compile_seconds,
        "gibibytes": row.gibibytes,
        **row.totals._asdict(),
        "parts": {
            name: t._asdict() for name, t in grouped(row.kernels, lambda k: f"{k.part}: {k.group}")
        },
    }


def revision(tree: Path) -> str:
    """What the measured code is, by git where it can tell."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["iddpm_cifar10"], help="or `all`")
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", help="that the network computes in")
    parser.add_argument("--small", action="store_true", help="one block per level")
    parser.add_argument("--by-op", type=int, default=0, help="also so many kinds of kernels")
    parser.add_argument("--from-tree", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--out", type=Path, help="also write JSON here")
    parser.add_argument("--hlo", type=Path, help="keep the compiled programs in this folder")
    parser.add_argument("--setup", action="store_true", help="say how to make the environment")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.setup:
        print(_SETUP)
        return
    prepare_environment()
    use_tree(options.from_tree)
    import jax
    from _programs import SETTINGS

    presets = list(SETTINGS) if options.preset == ["all"] else options.preset
    unknown = set(presets) - set(SETTINGS)
    if unknown:
        raise SystemExit(f"--preset {' '.join(unknown)}: expected some of {', '.join(SETTINGS)}.")
    rows = []
    for name in presets:
        for program in options.program:
            rows.append(measure(name, program, options))
            print(details(rows[-1], options.by_op), end="\n\n", flush=True)
            if options.out is not None:
                found = {"jax": jax.__version__, "revision": revision(options.from_tree)}
                found |= {"small": options.small, "dtype": options.dtype}
                text = json.dumps(found | {"rows": [as_json(row) for row in rows]}, indent=1)
                options.out.write_text(text + "\n")
    size = ", one block per level" if options.small else ""
    print(f"{options.dtype}, batch {options.batch}{size}, jax {jax.__version__}\n\n{HEADER}")
    print(*map(markdown, rows), sep="\n")


if __name__ == "__main__":
    main()
