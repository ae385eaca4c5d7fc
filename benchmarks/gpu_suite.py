"""Everything a GPU can tell about eqdiff in twelve minutes, in one command and one folder.

    python benchmarks/gpu_suite.py --out results --data cifar10.npz
    python benchmarks/gpu_suite.py --out results --parts chip rates      # some of it
    python benchmarks/gpu_suite.py --out /tmp/toy --toy                  # tiny, on any CPU

Parts, in the order in which they are worth the time that is left: the chip's own peak; training and
forward at batch 128 beside PyTorch, eager and compiled, in turns; a trace of a training step, and
the rates of sampling and likelihood; a real training run on CIFAR-10 with samples and bits/dim; a
training step with all its kernels in command buffers, and with none; the comparison at batch 512.
Each runs in a process of its own and writes what it finds at once to `results.jsonl`; one that
fails or takes too long is recorded as such, and the next begins. At the end `report.md` has all of
it; `kernels.md` is the trace, `samples.png` the samples, `loss.jsonl` the training run. PyTorch is
compared with where it is installed. Nothing is downloaded.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from _suite_networks import networks, Size
from _suite_records import Budget, Part, read_records, Recorder, report
from _tree import use_tree


FULL = Size("bfloat16", {}, {}, (128, 512), ("eqdiff", "torch eager", "torch compiled"), 2.0, 4)
_SMALL = {
    "num_res_blocks": 1,
    "channels": 32,
    "channel_mult": (1, 2),
    "attention_downsamples": (2,),
}
TOY = Size("float32", _SMALL, _SMALL, (4, 8), ("eqdiff", "torch eager"), 0.2, 2)

PARTS = (
    Part("chip", 20, 90),
    Part("networks", 90, 300),
    # A training step took 157 s to compile on an H100 the first time, 20 to 30 s from the cache.
    Part("rates", 200, 320),
    Part("training", 100, 240),
    Part("launches", 180, 220),
    Part("launches_none", 180, 220),
    Part("networks_large", 60, 600),
)
# Command buffers launch many kernels as one. By default XLA puts some kinds of kernel into them;
# these have all kinds that a training step consists of, and none.
FLAGS = {
    "launches": "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
    "DYNAMIC_SLICE_FUSION",
    "launches_none": "--xla_gpu_enable_command_buffer=",
}


def run_part(name: str, options: argparse.Namespace) -> None:
    """One part, in a process of its own."""
    record, size = Recorder(options.out / "results.jsonl"), TOY if options.toy else FULL
    use_tree(options.from_tree)
    tree = str(options.from_tree)
    if name.startswith("networks"):
        batches = size.batches[1:] if name == "networks_large" else size.batches[:1]
        networks(record, size, batches, options.seconds, tree)
        return
    # Only here: the comparison has JAX in a process of its own.
    from _suite_chip import chip, FLOP_PER_IMAGE, launches, rates, several, trace
    from _suite_training import evaluate, find_images, train

    if name in FLAGS:
        launches(record, size, FLAGS[name], 3 if options.toy else 30)
    elif name == "chip":
        chip(record, *((256, 1, {}) if options.toy else (8192, 2048, FLOP_PER_IMAGE)))
    elif name == "rates":
        trace(record, size, options.out)
        rates(record, size, *((4, 4) if options.toy else (256, 50)))
        several(record, size, 2 if options.toy else 8)
    else:
        images = find_images(options.data)
        # Half of the time that there is for samples and bits/dim, most of it compilation.
        state = train(record, size, options.out, images, 0.5 * options.seconds)
        num, terms = (4, 8) if options.toy else (64, 100)
        evaluate(record, options.out, images, state, num=num, terms=terms)


def command_of(part: Part, seconds: float, options: argparse.Namespace) -> list[str]:
    """What runs one part."""
    command = [sys.executable, "-u", __file__, "--run-part", part.name, "--out", str(options.out)]
    command += ["--seconds", f"{seconds:.0f}", "--from-tree", str(options.from_tree)]
    command += ["--toy"] if options.toy else []
    return command + ([] if options.data is None else ["--data", str(options.data)])


def watch(part: Part, seconds: float, options: argparse.Namespace, record: Recorder) -> None:
    """Runs one part and ends it, and all that it started, when its time is over."""
    with (options.out / "log.txt").open("a") as log:
        log.write(f"\n=== {part.name}, at most {seconds:.0f} s\n")
        log.flush()
        # Several processes share the chip's memory, and all what was compiled.
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": options.cache,
        }
        if part.name in FLAGS and not options.toy:
            flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS[part.name]}"
            environment["XLA_FLAGS"] = flags.strip()
        process = subprocess.Popen(
            command_of(part, seconds, options),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            if code != 0:
                record(part.name, kind="failed", what=part.name, error=f"exit code {code}")
        except subprocess.TimeoutExpired:
            record(part.name, kind="failed", what=part.name, error=f"not done in {seconds:.0f} s")
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--data", type=Path, help="CIFAR-10: a folder of binary files, or an .npz")
    parser.add_argument("--budget-s", type=float, default=720, help="seconds for all parts")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--toy", action="store_true", help="tiny networks, in a minute on a CPU")
    parser.add_argument("--from-tree", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--cache", help="where compiled programs are kept (default: thrown away)")
    # What the suite calls itself with.
    parser.add_argument("--run-part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.run_part is not None:
        try:
            run_part(options.run_part, options)
        except Exception as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"[:500]
            kind = "skipped" if isinstance(error, FileNotFoundError) else "failed"
            Recorder(options.out / "results.jsonl")(
                options.run_part, kind=kind, what=options.run_part, error=said
            )
        return
    # A part does not outlive the suite.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    results = options.out / "results.jsonl"
    record, budget = Recorder(results), Budget(options.budget_s)
    with tempfile.TemporaryDirectory() as cache:
        options.cache = options.cache or cache
        for part in (part for part in PARTS if part.name in options.parts):
            seconds = budget.allowed(part)
            if seconds is None:
                left = f"{budget.left:.0f} s left, it needs {part.least:.0f}"
                record(part.name, kind="skipped", what=part.name, error=left)
            else:
                watch(part, seconds, options, record)
            (options.out / "report.md").write_text(report(read_records(results)))
    print((options.out / "report.md").read_text())
    print(json.dumps({"folder": str(options.out), "seconds_left": round(budget.left)}))


if __name__ == "__main__":
    main()
