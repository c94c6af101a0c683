"""DeltaNet: a matrix memory per head that never decays, and overwrites the value a key recalls.

    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    out_t = W_o rms(y_t), and with an output gate W_o [rms(y_t) silu(W_g x_t)]

With `negative_eigenvalues`, beta_t = 2 sigmoid(w_b x_t): along k_t the memory is multiplied by
1 - beta_t, which then lies in (-1, 1), so that a token can flip what is stored (Grazzi et al. 2024,
arXiv:2411.12537), as parity needs.

The cost per token is the same at every context length. Names and initial values of parameters are
those of flash-linear-attention's layer of this name, except for its three convolutions: here
`qkv_conv1d` is one convolution over the channels of queries, keys and values.

Yang et al. 2024 (arXiv:2406.06484) after Schlag, Irie, Schmidhuber 2021 (arXiv:2102.11174).
Shapes: K key width.
"""

from dataclasses import dataclass

from attnlab.kernels.flash_linear_attention import Gate
from attnlab.modules.delta_memory import ScalarDecayConfig


@dataclass(frozen=True, kw_only=True)
class DeltaNet(ScalarDecayConfig):
    output_gate: bool = False  # multiply the output by silu(W_g x)

    @property
    def gate(self) -> Gate:
        return "none"
