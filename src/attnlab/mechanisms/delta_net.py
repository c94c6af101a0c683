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
Shapes: D model width, H heads, K key width, V value width, C = H V.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from attnlab.kernels.flash_linear_attention import Gate
from attnlab.modules.delta_memory import DeltaMemory, DeltaMemoryConfig
from attnlab.modules.norms import gated_norm


@dataclass(frozen=True, kw_only=True)
class DeltaNet(DeltaMemoryConfig):
    output_gate: bool = False  # multiply the output by silu(W_g x)

    @property
    def gate(self) -> Gate:
        return "none"

    def more_params(self, d_model: int) -> tuple[int, int]:
        return self.output_gate * d_model * self.values, self.value_dim  # g; the norm

    def build(self, d_model: int, dropout: float = 0.0) -> "DeltaNetMixer":
        del dropout  # there are no attention weights
        return DeltaNetMixer(self, d_model)


class DeltaNetMixer(DeltaMemory[DeltaNet]):
    def __init__(self, config: DeltaNet, d_model: int) -> None:
        super().__init__(config, d_model)
        if config.output_gate:
            self.g_proj = nn.Linear(d_model, config.values, bias=False)

    def decays(self, x_D: Tensor) -> None:
        del x_D  # nothing decays

    def normed(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        gate_C = self.g_proj(x_D) if self.config.output_gate else None
        return gated_norm(y_HV, self.o_norm, gate_C, self.config.kernel)
