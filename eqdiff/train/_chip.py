"""The peak of a chip and the memory in use on it, where they are known.

Peaks are of dense matrix products in bfloat16 with float32 sums (float16 on Volta, which has no
bfloat16), as the vendors' data sheets have them; where a sheet gives the figure with sparsity, half
of it. What a program reaches is less: the share of the peak compares programs on one chip better
than chips with one another.

Sources: NVIDIA's data sheets of B200 (HGX), H200, H100, A100, V100, L40S and L4; its white papers
*Ada GPU architecture* (RTX 4090) and *Ampere GA102 GPU architecture* (RTX 3090), appendix A, tensor
TFLOPS with float32 accumulation; Google Cloud's *TPU architecture* pages, peak compute per chip.
"""

from typing import NamedTuple

import jax


# In teraflop/s, by what a device's kind begins with, vendor's name dropped; the longest that fits
# counts. The rest of a name is memory size and packaging, except where it is listed.
_TERAFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "A100": 312.0,
    "V100": 125.0,
    "V100-PCIE": 112.0,
    "V100S": 130.0,
    "L40S": 362.05,
    "L4": 121.0,
    "GeForce RTX 4090": 165.2,
    "GeForce RTX 3090": 71.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}
# Other chips whose names begin alike.
_OTHERS = (
    "GeForce RTX 4090 D",
    "GeForce RTX 4090 Laptop",
    "GeForce RTX 3090 Ti",
    "A100X",
    "TPU v4 lite",
)


class DeviceMemory(NamedTuple):
    """The memory of a device, in bytes.

    **Fields:**

    - `in_use`: by arrays, now.
    - `peak`: the most that was in use since the program began.
    - `limit`: what the program may use.

    **Example:**

    ```python
    memory = eqd.train.device_memory()  # an eqd.train.DeviceMemory on a GPU
    if memory is not None:
        print(memory.peak / memory.limit)
    ```
    """

    in_use: int
    peak: int
    limit: int | None


def _begins(kind: str, name: str) -> bool:
    """Whether a kind is of this name: what follows is not a part of the same word."""
    rest = kind[len(name) :]
    return kind.startswith(name) and not rest[:1].isalnum()


def peak_flops(device: jax.Device | None = None) -> float | None:
    """The peak of a chip in floating-point operations per second.

    Of dense matrix products in bfloat16, from the vendor's data sheet. Divide a step's
    `flops` per second by it for the fraction of the peak that your program reaches.

    **Arguments:**

    - `device`: by default the first one.

    **Returns:** the figure, or `None` for a chip that is not listed, such as a CPU.

    **Example:**

    ```python
    print(eqd.train.peak_flops())  # None on a CPU
    ```
    """
    kind = (jax.devices()[0] if device is None else device).device_kind
    for vendor in ("NVIDIA ", "Tesla "):
        kind = kind.removeprefix(vendor)
    if any(_begins(kind, name) for name in _OTHERS):
        return None
    found = [name for name in _TERAFLOPS if _begins(kind, name)]
    return 1e12 * _TERAFLOPS[max(found, key=len)] if found else None


def device_memory(device: jax.Device | None = None) -> DeviceMemory | None:
    """The memory of a device that is in use.

    **Arguments:**

    - `device`: by default the first one of this process.

    **Returns:** a [`eqdiff.train.DeviceMemory`][], or `None` where JAX does not say, as on a CPU.

    **Example:**

    ```python
    memory = eqd.train.device_memory()  # None on a CPU
    ```
    """
    stats = (jax.local_devices()[0] if device is None else device).memory_stats() or {}
    if "bytes_in_use" not in stats:
        return None
    in_use = int(stats["bytes_in_use"])
    return DeviceMemory(
        in_use, int(stats.get("peak_bytes_in_use", in_use)), stats.get("bytes_limit")
    )
