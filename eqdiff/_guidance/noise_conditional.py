r"""Noise-conditional classifiers.

Guidance needs $\log p(y|x_t)$ at every noise level (Song et al. 2021, section 5): a classifier that
sees noisy data and how noisy they are, trained by [`eqdiff.classifier_loss`][].
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import check_example, is_traced
from .._denoiser import CNoise, time_input
from .._process import AbstractProcess, check_time
from .._types import Args, Array, Example, Float, Key, Network, Scalar, Time


class Classifier(eqx.Module):
    r"""$\log p(y|x_t)$ by a network that returns logits: `classifier(t, x, y)`, as guidance
    expects.

    The network is called as `net(c_noise, x, None, key=key)`, like a denoiser's.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 10, key=jax.random.key(0))
    classifier = eqd.Classifier(net, eqd.VPSDE())
    log_p = classifier(0.5, jnp.ones(2), 7)  # of class 7
    ```
    """

    net: Network
    process: AbstractProcess
    c_noise: CNoise | None

    def __init__(
        self,
        net: Network,
        process: AbstractProcess,
        *,
        c_noise: CNoise | None = None,
    ):
        """**Arguments:**

        - `net`: the network, `(c_noise, x, args, *, key) -> logits`, one for each class; for
            vectors `nn.MLP(in_size, num_classes)`.
        - `process`: the process whose noise it has learned to see through.
        - `c_noise`: the network's time input, as for [`eqdiff.Denoiser`][].
        """
        self.net, self.process, self.c_noise = net, process, c_noise

    def logits(self, t: Time, x: Example, *, key: Key | None = None) -> Float[Array, " classes"]:
        """The network's logits of $x = x_t$.

        **Arguments:**

        - `t`: the time.
        - `x`: one noisy example.
        - `key`: for dropout; without a key nothing is dropped.

        **Raises:** `ValueError` for integer data, a time that is known and out of range, or a
        network that does not return one vector.
        """
        check_example("The classifier", x)
        check_time(self.process, t)
        c_noise = time_input(self.process, self.c_noise, t, like=x)
        logits = self.net(c_noise, x, None, key=key)
        if logits.ndim != 1:
            raise ValueError(
                f"The classifier's network returned shape {logits.shape} for x of shape "
                f"{x.shape}, expected one vector of logits, (classes,). For a batch write "
                "jax.vmap."
            )
        return logits.astype(x.dtype)

    def __call__(self, t: Time, x: Example, args: Args, *, key: Key | None = None) -> Scalar:
        r"""$\log p(y|x_t)$ in nats.

        **Arguments:**

        - `t`, `x`, `key`: as for `logits`.
        - `args`: the class $y$, one integer. A traced class that the network does not have gives
            NaN.

        **Raises:** `ValueError` for a class that is not one integer or, where it is known, one that
        the network does not have; and as `logits`.
        """
        if args is None:
            raise ValueError(
                "The classifier was given no class: write sampler(denoiser, x1, class_label)."
            )
        if jnp.shape(args) != () or not jnp.issubdtype(jnp.result_type(args), jnp.integer):
            raise ValueError(
                f"The class of one example is one integer, got {jnp.result_type(args)} of shape "
                f"{jnp.shape(args)}. Batch with jax.vmap; turn one-hot vectors into integers with "
                "jnp.argmax."
            )
        log_probs = jax.nn.log_softmax(self.logits(t, x, key=key))
        known = not is_traced(args)
        if known and not 0 <= int(args) < log_probs.size:
            raise ValueError(
                f"The class is {int(args)}, but the classifier has {log_probs.size}: expected 0 "
                f"to {log_probs.size - 1}."
            )
        # Indexing would take a class that does not exist for the last one: it gives NaN, as in the
        # networks.
        place = jnp.where(jnp.asarray(args) < 0, log_probs.size, jnp.asarray(args))
        return log_probs.at[place].get(mode="fill", fill_value=jnp.nan)
