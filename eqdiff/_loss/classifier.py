r"""Training a noise-conditional classifier.

$$L = \mathbb E_{t, (x_0, y), \varepsilon}\left[-\log p(y|\alpha_t x_0
  + \sigma_t\varepsilon)\right], \tag{1}$$

whose minimum over all classifiers is the true $p_t(y|x_t)$, at every noise level that $t$ is drawn
from (Song et al. 2021, section 5 and appendix I.1; Dhariwal & Nichol 2021, section 4).
"""

import jax

from .._check import check_example
from .._guidance import Classifier
from .._process import check_time
from .._types import Array, Example, Int, Key, Scalar, Time


def classifier_loss(
    classifier: Classifier, t: Time, x0: Example, class_label: Int[Array, ""] | int, *, key: Key
) -> Scalar:
    r"""The cross-entropy $-\log p(y|x_t)$ of a classifier at one noised example, equation (1).

    **Arguments:**

    - `classifier`: an [`eqdiff.Classifier`][].
    - `t`: the time to noise to.
    - `x0`: one example of data.
    - `class_label`: its class $y$, one integer.
    - `key`: for the noise and for dropout.

    **Returns:** a number of nats; at the noisiest times it cannot fall below the entropy of the
    classes.

    **Raises:** `ValueError` for integer data, a time that is known and out of range, or a class
    that is not one integer, or that the network does not have.

    **Example:**

    ```python
    classifier = eqd.Classifier(eqd.nn.MLP(2, 10, key=jax.random.key(0)), eqd.VPSDE())
    loss = eqd.classifier_loss(classifier, 0.5, jnp.ones(2), 7, key=jax.random.key(1))  # in nats
    ```
    """
    check_example("classifier_loss", x0)
    check_time(classifier.process, t)
    noise_key, net_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x = classifier.process.perturb(t, x0, noise)
    return -classifier(t, x, class_label, key=net_key)
