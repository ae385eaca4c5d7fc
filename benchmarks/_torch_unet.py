"""Improved DDPM's U-Net in plain PyTorch, and its training step: what ours is timed against.

The layers, and their names, are those of the official code (`improved-diffusion`), so that
`eqdiff.interop.openai_unet` reads its weights. What the official code leaves slow is not:
activations are channels-last, products and convolutions are autocast, attention is PyTorch's fused
one, the optimiser is fused and the averages are updated in one call. The step is as ours is: times
and noise, a squared error, the gradient's norm clipped, Adam, one average. It lacks L_hybrid's
bound.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32 if channels % 32 == 0 else 8, channels)


class ResBlock(nn.Module):
    """Scale-shift norm and dropout."""

    def __init__(self, channels: int, embedding: int, out: int, dropout: float):
        super().__init__()
        self.in_layers = nn.Sequential(
            norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.out_layers = nn.Sequential(
            norm(out), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out, out, 3, padding=1)
        )
        same = channels == out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out, 1)

    def forward(self, x, embedding):
        h = self.in_layers(x)
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)


class AttentionBlock(nn.Module):
    """Self-attention over pixels."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, embedding):
        del embedding
        batch, channels = x.shape[:2]
        h = self.qkv(self.norm(x).reshape(batch, channels, -1))
        # (batch, heads, 3, channels of a head, pixels), as the official code has them.
        q, k, v = h.reshape(batch, self.heads, 3, channels // self.heads, -1).unbind(2)
        h = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        return x + self.proj_out(h.reshape(batch, channels, -1)).reshape(x.shape)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, embedding):
        del embedding
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, embedding):
        del embedding
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Convolution(nn.Conv2d):
    def forward(self, x, embedding):
        del embedding
        return super().forward(x)


def sinusoids(t: torch.Tensor, size: int) -> torch.Tensor:
    frequencies = torch.exp(-math.log(1e4) * torch.arange(size // 2, device=t.device) / (size // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class UNet(nn.Module):
    """`(x, t) -> (batch, 6, height, width)`; by default Improved DDPM's network for CIFAR-10."""

    def __init__(
        self,
        channels: int = 128,
        num_res_blocks: int = 3,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        attention_downsamples: tuple[int, ...] = (2, 4),
        num_heads: int = 4,
        dropout: float = 0.3,
    ):
        super().__init__()
        self.channels, size = channels, 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, size), nn.SiLU(), nn.Linear(size, size))

        def level(width: int, out: int, down: int) -> nn.ModuleList:
            layers = nn.ModuleList([ResBlock(width, size, out, dropout)])
            if down in attention_downsamples:
                layers.append(AttentionBlock(out, num_heads))
            return layers

        widths, width = [channels], channels
        first = Convolution(3, channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        for i, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(level(width, mult * channels, 2**i))
                width = mult * channels
                widths.append(width)
            if i < len(channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(width)]))
                widths.append(width)
        self.middle_block = nn.ModuleList(
            [
                ResBlock(width, size, width, dropout),
                AttentionBlock(width, num_heads),
                ResBlock(width, size, width, dropout),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for i, mult in reversed(list(enumerate(channel_mult))):
            for j in range(num_res_blocks + 1):
                layers = level(width + widths.pop(), mult * channels, 2**i)
                width = mult * channels
                if i > 0 and j == num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(layers)
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, 6, 3, padding=1))

    def forward(self, x, t):
        embedding = self.time_embed(sinusoids(t, self.channels))
        skips = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, embedding)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, embedding)
        for layers in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in layers:
                x = layer(x, embedding)
        return self.out(x)


class Trainer:
    """A network with its optimiser and its average, and the functions that are timed."""

    def __init__(self, net: UNet, batch: int, dtype: str, *, compiled: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.average = [p.detach().clone() for p in self.net.parameters()]
        # Compiled for these shapes alone, as a run that never changes them would be.
        self.call = torch.compile(self.net, dynamic=False) if compiled else self.net
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=1e-4, weight_decay=0.0, fused=True
        )
        self.cast = torch.autocast(self.device, getattr(torch, dtype), enabled=dtype != "float32")
        x = torch.randn(batch, 3, 32, 32, device=self.device)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.signal = torch.linspace(1, 1e-4, 4000, device=self.device)

    def finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def forward(self) -> Any:
        self.net.eval()
        t = torch.zeros(len(self.x), device=self.device)
        with torch.inference_mode(), self.cast:
            return self.call(self.x, t)

    def train(self) -> Any:
        self.net.train()
        t = torch.randint(4000, (len(self.x),), device=self.device)
        noise = torch.randn_like(self.x)
        signal = self.signal[t][:, None, None, None]
        noisy = signal.sqrt() * self.x + (1 - signal).sqrt() * noise
        with self.cast:
            out = self.call(noisy, t / 4)
        loss = torch.mean((out[:, :3].float() - noise) ** 2)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.net.parameters()), 1e-4)
        return loss
