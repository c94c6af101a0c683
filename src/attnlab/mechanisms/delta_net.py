"""DeltaNet: a matrix memory a head that never forgets, and overwrites what a key recalls.

    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    out_t = W_o rms(y_t), and with an output gate W_o [rms(y_t) silu(W_g x_t)]

It costs the same for every token, however many came before. Parameters are named and begin as in
flash-linear-attention's layer of this name, but for its three convolutions: `qkv_conv1d` is the one
over the channels of all three.

Yang et al. 2024 (arXiv:2406.06484) after Schlag, Irie, Schmidhuber 2021 (arXiv:2102.11174).
Shapes: D model width, H heads, V value width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from attnlab.mechanism import Cost, MechanismConfig
from attnlab.modules.delta_heads import DeltaHeads, DeltaHeadsConfig
from attnlab.modules.gated_norm import gated_norm
from attnlab.modules.short_convolution import ShortConvolution


@dataclass(frozen=True, kw_only=True)
class DeltaNet(DeltaHeadsConfig, MechanismConfig):
    output_gate: bool = False

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        gate = d_model * self.output_gate * self.values
        return self.delta_cost(d_model, itemsize, weights=gate, vectors=0)

    def build(self, d_model: int, dropout: float = 0.0) -> "DeltaNetMixer":
        del dropout  # there are no attention weights
        return DeltaNetMixer(self, d_model)


class DeltaNetMixer(DeltaHeads):
    gate = "none"

    def __init__(self, config: DeltaNet, d_model: int) -> None:
        super().__init__(config)
        self.config = config
        keys, values = config.keys, config.values
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        self.b_proj = nn.Linear(d_model, config.n_heads, bias=False)
        self.qkv_conv1d = ShortConvolution(2 * keys + values, config.conv_size, config.kernel)
        if config.output_gate:
            self.g_proj = nn.Linear(d_model, values, bias=False)
        self.o_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def log_decay(self, x_D: Tensor) -> None:
        del x_D

    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        gate_C = self.g_proj(x_D) if self.config.output_gate else None
        return self.o_proj(gated_norm(y_HV, self.o_norm, gate_C, self.config.kernel).to(x_D.dtype))
