"""Gated DeltaProduct: a Gated DeltaNet that overwrites by several keys per token, one by one.

    S_t0 = exp(g_t) S_{t-1}        S_tj = (I - beta_tj k_tj k_tj^T) S_t(j-1) + beta_tj k_tj v_tj^T
    S_t = S_tN                     y_t = K^-0.5 q_t S_t                        j = 1..N

    q, k, v = conv(W x)  each, q and k then of length 1        beta_tj = 2 sigmoid(w_bj x_t)
    g_t = -exp(A_log) softplus(w_a x_t + dt_bias)              out_t = W_o [rms(y_t) silu(W_g x_t)]

The transition of a token is a product of N (`n_householder`) generalised Householder matrices. For
beta near 2 one of them reflects, two rotate, and N give each permutation of N + 1 elements. Without
`negative_eigenvalues`, beta_tj = sigmoid(w_bj x_t), which reflects nothing. Without `forget_gate`
it is DeltaProduct, which never decays. With N = 1 it is a Gated DeltaNet.

Keys, values and strengths have projections per write; the chunked form computes N tokens per token,
of which the last reads. The cost per token is the same at every context length, and so is the
decode state but for the channels of the convolution. Names of parameters are those of
flash-linear-attention's layer of this name, except for its three convolutions: here `qkv_conv1d` is
one convolution over the channels of queries, keys and values.

Siems et al. 2025 (arXiv:2502.10297).
Shapes: K key width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from attnlab.config import Problem
from attnlab.kernels.flash_linear_attention import Gate
from attnlab.modules.delta_memory import ScalarDecayConfig
from attnlab.modules.matrix_memory import at_least_1


@dataclass(frozen=True, kw_only=True)
class GatedDeltaProduct(ScalarDecayConfig):
    n_householder: int = 2  # writes per token, each along a key of its own
    forget_gate: bool = True  # decay by a learned scalar per head and token
    negative_eigenvalues: bool = True  # beta in (0, 2) in place of (0, 1)

    @property
    def gate(self) -> Gate:
        return "head" if self.forget_gate else "none"

    @property
    def writes(self) -> int:
        return self.n_householder

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "n_householder")
