"""score_sde's JAX modules, as short as Flax's names allow: `Class_n` by the order of calls.

For `make_fixtures.py` alone; written from the names and the order in the official code, not from
its text.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def conv(x, out, size=3, stride=1):
    return nn.Conv(out, (size, size), (stride, stride), padding="SAME")(x)


class NIN(nn.Module):
    out: int

    @nn.compact
    def __call__(self, x):
        w = self.param("W", nn.initializers.normal(0.3), (x.shape[-1], self.out))
        return x @ w + self.param("b", nn.initializers.normal(0.1), (self.out,))


def groups(x):
    return min(x.shape[-1] // 4, 32)


class GaussianFourierProjection(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x):
        angle = (
            2 * jnp.pi * x[:, None] * self.param("W", nn.initializers.normal(16.0), (self.size,))
        )
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def fir(x, pad, gain=1.0):
    taps = jnp.array([1.0, 3.0, 3.0, 1.0])
    kernel = gain * jnp.outer(taps, taps)[:, :, None, None] / 64
    channels = x.shape[-1]
    return jax.lax.conv_general_dilated(
        x,
        jnp.tile(kernel, (1, 1, 1, channels)),
        (1, 1),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def fir_down(x):
    return fir(x, (1, 1))[:, ::2, ::2]


def fir_up(x):
    n, h, w, c = x.shape
    zeros = jnp.zeros((n, h, 2, w, 2, c)).at[:, :, 0, :, 0].set(x).reshape(n, 2 * h, 2 * w, c)
    return fir(zeros, (2, 1), 4.0)


class Conv2d(nn.Module):
    out: int

    @nn.compact
    def __call__(self, x):
        w = self.param("weight", nn.initializers.normal(0.2), (3, 3, x.shape[-1], self.out))
        b = self.param("bias", nn.initializers.normal(0.1), (self.out,))
        return (
            jax.lax.conv_general_dilated(
                fir(x, (2, 2)), w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            + b
        )


class Downsample(nn.Module):
    """With a filter and a convolution, or without a filter."""

    fir: bool
    out: int

    @nn.compact
    def __call__(self, x):
        return Conv2d(self.out)(x) if self.fir else conv(x, self.out, stride=2)


class Upsample(nn.Module):
    @nn.compact
    def __call__(self, x):
        return conv(x.repeat(2, 1).repeat(2, 2), x.shape[-1])


class ResnetBlockBigGANpp(nn.Module):
    out: int
    direction: str = ""

    @nn.compact
    def __call__(self, x, temb):
        resample = {"": lambda a: a, "up": fir_up, "down": fir_down}[self.direction]
        h = resample(nn.swish(nn.GroupNorm(groups(x))(x)))
        x = resample(x)
        h = conv(h, self.out) + nn.Dense(self.out)(nn.swish(temb))[:, None, None]
        h = conv(nn.swish(nn.GroupNorm(groups(h))(h)), self.out)
        if x.shape[-1] != self.out or self.direction:
            x = conv(x, self.out, 1)
        return (x + h) / 2**0.5


class ResnetBlockDDPM(nn.Module):
    out: int

    @nn.compact
    def __call__(self, x, temb):
        h = (
            conv(nn.swish(nn.GroupNorm(32)(x)), self.out)
            + nn.Dense(self.out)(nn.swish(temb))[:, None, None]
        )
        h = conv(nn.swish(nn.GroupNorm(32)(h)), self.out)
        return h + (NIN(self.out)(x) if x.shape[-1] != self.out else x)


def attend(x, norm, rescale):
    n, height, width, c = x.shape
    h = norm(x)
    q, k, v = (NIN(c)(h).reshape(n, -1, c) for _ in range(3))
    weights = nn.softmax(jnp.einsum("nqc,nkc->nqk", q, k) * c**-0.5)
    h = NIN(c)(jnp.einsum("nqk,nkc->nqc", weights, v).reshape(x.shape))
    return (x + h) * rescale


class AttnBlockpp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return attend(x, nn.GroupNorm(groups(x)), 0.5**0.5)


class AttnBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return attend(x, nn.GroupNorm(32), 1.0)


class NCSNpp(nn.Module):
    """VE, FIR filters, residual pyramid down; a block a level, widths (4, 8), attention at 4×4."""

    @nn.compact
    def __call__(self, x, sigma):
        temb = GaussianFourierProjection(4)(jnp.log(sigma))
        temb = nn.Dense(16)(temb)
        temb = nn.Dense(16)(nn.swish(temb))
        x = 2 * x - 1
        pyramid, hs = x, [conv(x, 4)]
        hs.append(ResnetBlockBigGANpp(4)(hs[-1], temb))
        h = ResnetBlockBigGANpp(4, "down")(hs[-1], temb)
        pyramid = (Downsample(True, 4)(pyramid) + h) / 2**0.5
        hs.append(pyramid)
        hs.append(AttnBlockpp()(ResnetBlockBigGANpp(8)(hs[-1], temb)))
        h = ResnetBlockBigGANpp(8)(hs[-1], temb)
        h = ResnetBlockBigGANpp(8)(AttnBlockpp()(h), temb)
        for _ in range(2):
            h = ResnetBlockBigGANpp(8)(jnp.concatenate([h, hs.pop()], -1), temb)
        h = ResnetBlockBigGANpp(8, "up")(AttnBlockpp()(h), temb)
        for _ in range(2):
            h = ResnetBlockBigGANpp(4)(jnp.concatenate([h, hs.pop()], -1), temb)
        h = conv(nn.swish(nn.GroupNorm(groups(h))(h)), x.shape[-1])
        return h / sigma[:, None, None, None]


class DDPM(nn.Module):
    """As the golden one: one block per level, widths (32, 64), attention at half the side."""

    @nn.compact
    def __call__(self, x, time):
        frequencies = 10_000.0 ** -(jnp.arange(16) / 15)
        angle = time[:, None] * frequencies
        temb = nn.Dense(128)(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1))
        temb = nn.Dense(128)(nn.swish(temb))
        hs = [conv(x, 32)]
        hs.append(ResnetBlockDDPM(32)(hs[-1], temb))
        hs.append(Downsample(False, 32)(hs[-1]))
        hs.append(AttnBlock()(ResnetBlockDDPM(64)(hs[-1], temb)))
        h = ResnetBlockDDPM(64)(hs[-1], temb)
        h = ResnetBlockDDPM(64)(AttnBlock()(h), temb)
        for _ in range(2):
            h = ResnetBlockDDPM(64)(jnp.concatenate([h, hs.pop()], -1), temb)
        h = Upsample()(AttnBlock()(h))
        for _ in range(2):
            h = ResnetBlockDDPM(32)(jnp.concatenate([h, hs.pop()], -1), temb)
        return conv(nn.swish(nn.GroupNorm(32)(h)), x.shape[-1])
