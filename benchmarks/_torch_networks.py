"""The networks of `networks.py` in PyTorch, from diffusers: what ours are timed against.

    pip install torch diffusers            # and eqdiff

`iddpm_cifar10` is the same architecture, layer by layer. NCSN++ is not: diffusers has its residual
blocks that resample, its Fourier features and its widths, but repeats pixels where NCSN++ filters
them and has no residual pyramid next to the encoder. So it has less to do than ours, and is the
same as our `ddpmpp_cifar10` but for the embedding of time.
"""

import time
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel


class TorchNetwork(NamedTuple):
    """A network on its device, and the functions to be timed."""

    runs_on: str
    parameters: int
    compile_seconds: float
    forward: Any
    train: Any


_CIFAR10: dict[str, Any] = dict(
    sample_size=32,
    in_channels=3,
    block_out_channels=(128, 256, 256, 256),
    norm_num_groups=32,
)


def iddpm_cifar10() -> UNet2DModel:
    """Improved DDPM: four heads of 64 channels at 16×16 and 8×8, scale-shift norm, dropout 0.3."""
    return UNet2DModel(
        **_CIFAR10,
        out_channels=6,
        layers_per_block=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        resnet_time_scale_shift="scale_shift",
        dropout=0.3,
        norm_eps=1e-5,
    )


def ncsnpp_cifar10() -> UNet2DModel:
    """NCSN++ without filters and pyramid: four blocks per level, one head at 16×16, dropout 0.1."""
    down, up = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    return UNet2DModel(
        **_CIFAR10,
        out_channels=3,
        layers_per_block=4,
        down_block_types=(down, "AttnDownBlock2D", down, down),
        up_block_types=(up, up, "AttnUpBlock2D", up),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=256,
        time_embedding_type="fourier",
        dropout=0.1,
        norm_eps=1e-6,
    )


_NETWORKS = {
    "iddpm_cifar10": iddpm_cifar10,
    "ncsnpp_cifar10": ncsnpp_cifar10,
    "ddpmpp_cifar10": ncsnpp_cifar10,
}


def torch_network(name: str, batch: int, dtype: str, *, compiled: bool) -> TorchNetwork:
    """One network with Adam.

    The first forward pass and training step, in which `torch.compile` works, are timed apart.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = _NETWORKS[name]().to(device)
    parameters = sum(p.numel() for p in net.parameters())
    call = torch.compile(net) if compiled else net
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    x = torch.randn(batch, 3, 32, 32, device=device)
    # Positive, since NCSN++ takes the logarithm.
    c_noise = torch.linspace(0.01, 50.0, batch, device=device)
    cast = torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32")

    def finish():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        net.eval()
        with torch.inference_mode(), cast:
            call(x, c_noise)
        finish()

    def train():
        net.train()
        with cast:
            loss = torch.mean((call(x, c_noise).sample[:, :3] - x) ** 2)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        finish()

    start = time.perf_counter()
    forward()
    train()
    chip = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    runs_on = f"torch {torch.__version__}, {chip}"
    return TorchNetwork(runs_on, parameters, time.perf_counter() - start, forward, train)
