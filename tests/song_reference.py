"""score_sde's `ddpm` and `ncsnpp` in the order of the official modules, read by number and name.

Written from the published description of both, without filters (`fir=False`); checked against the
official outputs in `golden/` by its own test. Images are channels-first, weights PyTorch's.
"""

import jax
import jax.numpy as jnp
import numpy as np


ACTIVATIONS = {
    "swish": lambda x: x / (1 + jnp.exp(-x)),
    "elu": lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0))),
    "relu": lambda x: jnp.maximum(x, 0),
    "lrelu": lambda x: jnp.maximum(x, x / 5),
}


class Modules:
    """The official modules one after the other, each as a dictionary of its arrays."""

    def __init__(self, state):
        self.state, self.number = state, -1

    def __call__(self):
        self.number += 1
        start = f"all_modules.{self.number}."
        return {k[len(start) :]: v for k, v in self.state.items() if k.startswith(start)}


def conv(x, w, name="", stride=1, pad=1):
    weight, bias = w[f"{name}weight"], w[f"{name}bias"]
    y = jax.lax.conv_general_dilated(x[None], weight, (stride, stride), 2 * [(pad, pad)])[0]
    return y + bias[:, None, None]


def nin(x, w, name):
    return jnp.einsum("chw,cd->dhw", x, w[f"{name}.W"]) + w[f"{name}.b"][:, None, None]


def up(x):
    return x.repeat(2, 1).repeat(2, 2)


def down(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


class Song:
    def __init__(self, state, config):
        self.model, self.data, self.next = config["model"], config["data"], Modules(state)
        self.plus = self.model["name"] == "ncsnpp"
        self.act = ACTIVATIONS[self.model["nonlinearity"]]
        self.rescale = 2**-0.5 if self.plus and self.model["skip_rescale"] else 1.0

    def norm(self, x, w, name=""):
        channels, height, width = x.shape
        groups = min(channels // 4, 32) if self.plus else 32
        h = x.reshape(groups, -1)
        h = (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-6)
        h = h.reshape(channels, height, width)
        return h * w[f"{name}weight"][:, None, None] + w[f"{name}bias"][:, None, None]

    def embed(self, label):
        nf = self.model["nf"]
        if self.plus and self.model["embedding_type"] == "fourier":
            angles = 2 * np.pi * jnp.log(label) * self.next()["W"]
        else:
            angles = label * 10_000.0 ** -(jnp.arange(nf // 2) / (nf // 2 - 1))
        e = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
        if self.plus and not self.model["conditional"]:
            return None
        first, second = self.next(), self.next()
        e = self.act(first["weight"] @ e + first["bias"])
        return second["weight"] @ e + second["bias"]

    def block(self, x, e, resample=None):
        w = self.next()
        biggan = self.plus and self.model["resblock_type"] == "biggan"
        h = self.act(self.norm(x, w, "GroupNorm_0."))
        if resample is not None:
            h, x = resample(h), resample(x)
        h = conv(h, w, "Conv_0.")
        if e is not None:
            h += (w["Dense_0.weight"] @ self.act(e) + w["Dense_0.bias"])[:, None, None]
        h = conv(self.act(self.norm(h, w, "GroupNorm_1.")), w, "Conv_1.")
        if len(x) != len(h) or resample is not None:
            x = conv(x, w, "Conv_2.", pad=0) if biggan else nin(x, w, "NIN_0")
        return (x + h) * self.rescale

    def attention(self, x):
        w, channels = self.next(), len(x)
        h = self.norm(x, w, "GroupNorm_0.")
        q, k, v = (nin(h, w, f"NIN_{i}").reshape(channels, -1) for i in range(3))
        weights = jax.nn.softmax(q.T @ k / channels**0.5, axis=-1)
        h = nin((v @ weights.T).reshape(x.shape), w, "NIN_3")
        return (x + h) * self.rescale

    def between(self, x, e, plain, convolve):
        """From one level to another."""
        if self.plus and self.model["resblock_type"] == "biggan":
            return self.block(x, e, plain)
        if self.model["resamp_with_conv"]:
            return convolve(x)
        # Modules without weights are counted, but for the filters of skips.
        self.next()
        return plain(x)

    def smaller(self, x):
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1)))
        return conv(padded, self.next(), "Conv_0.", stride=2, pad=0)

    def larger(self, x):
        return conv(up(x), self.next(), "Conv_0.")

    def head(self, h):
        norm = self.next()
        return conv(self.act(self.norm(h, norm)), self.next())

    def encoder(self, x, e):
        levels, into = len(self.model["ch_mult"]), self.model.get("progressive_input", "none")
        into = into if self.plus else "none"
        pyramid, hs = x, [conv(x, self.next())]
        for level in range(levels):
            for _ in range(self.model["num_res_blocks"]):
                h = self.block(hs[-1], e)
                hs.append(self.attention(h) if self.attends(h) else h)
            if level == levels - 1:
                return hs
            h = self.between(hs[-1], e, down, self.smaller)
            if into == "input_skip":
                pyramid = down(pyramid)
                projected = conv(pyramid, self.next(), "Conv_0.", pad=0)
                join = self.model["progressive_combine"]
                h = projected + h if join == "sum" else jnp.concatenate([projected, h])
            elif into == "residual":
                h = pyramid = (self.smaller(pyramid) + h) * self.rescale
            hs.append(h)

    def attends(self, h):
        return h.shape[-1] in self.model["attn_resolutions"]

    def __call__(self, x, label):
        """One image, and what the official network is told of the time."""
        e, out = self.embed(label), self.model["progressive"] if self.plus else "none"
        hs, pyramid = self.encoder(x if self.data["centered"] else 2 * x - 1, e), None
        h = self.block(self.attention(self.block(hs[-1], e)), e)
        for level in reversed(range(len(self.model["ch_mult"]))):
            for _ in range(self.model["num_res_blocks"] + 1):
                h = self.block(jnp.concatenate([h, hs.pop()]), e)
            h = self.attention(h) if self.attends(h) else h
            if out != "none" and pyramid is None:
                pyramid = self.head(h)
            elif out == "output_skip":
                pyramid = up(pyramid) + self.head(h)
            elif out == "residual":
                h = pyramid = (self.larger(pyramid) + h) * self.rescale
            h = self.between(h, e, up, self.larger) if level > 0 else h
        return pyramid if out == "output_skip" else self.head(h)
