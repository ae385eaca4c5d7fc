"""The differential equations as Diffrax terms, for solves of your own by `diffrax.diffeqsolve`."""

from ._term import (
    augmented_flow as augmented_flow,
    forward_general_sde as forward_general_sde,
    forward_sde as forward_sde,
    general_probability_flow as general_probability_flow,
    probability_flow as probability_flow,
    reverse_general_sde as reverse_general_sde,
    reverse_sde as reverse_sde,
)
