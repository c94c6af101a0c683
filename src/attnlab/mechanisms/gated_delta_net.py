"""Gated DeltaNet: a matrix memory per head that forgets by a learned scalar and overwrites by key.

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    g_t = -exp(A_log) softplus(w_a x_t + dt_bias)              out_t = W_o [rms(y_t) silu(W_g x_t)]

With `negative_eigenvalues`, beta_t = 2 sigmoid(w_b x_t): along k_t the memory is multiplied by
1 - beta_t, which then lies in (-1, 1), so that a token can flip what is stored (Grazzi et al. 2024,
arXiv:2411.12537), as parity needs.

The cost per token is the same at every context length. Names and initial values of parameters are
those of flash-linear-attention's layer of this name, except for its three convolutions: here
`qkv_conv1d` is one convolution over the channels of queries, keys and values.

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464).
Shapes: K key width.
"""

from dataclasses import dataclass

from attnlab.kernels.flash_linear_attention import Gate
from attnlab.modules.delta_memory import ScalarDecayConfig


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(ScalarDecayConfig):
    @property
    def gate(self) -> Gate:
        return "head"
