"""A mixture of experts: many feed-forward layers, of which each token uses a few.

    y = sum_{e in chosen(x)} w_e(x) expert_e(x)  +  shared(x)

Shazeer et al. 2017 (arXiv:1701.06538); shared experts as in DeepSeekMoE (arXiv:2401.06066). The
choice of experts is in `routing`. No token is dropped at any load. Two ways to balance the load:

    balance_loss  a E sum_e f_e P_e is added to the loss, f_e the share of the choices that went to
                  expert e and P_e its mean probability (Switch, arXiv:2101.03961)
    bias_rate     u: b_e += u sign(mean load - load of e) after each training step; b is added to
                  the scores for the choice alone (DeepSeek-V3, arXiv:2412.19437; arXiv:2408.15664)

Shapes: N tokens, K choices per token, M = N K rows, E experts, D model width, F hidden width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, silu

from attnlab.config import Problem
from attnlab.kernels import grouped_matmul
from attnlab.kernels.compiled import opaque
from attnlab.mechanism import Cost
from attnlab.model.feedforward import Dense, FeedForward, FeedForwardLayer, SwiGLU
from attnlab.model.routing import Routing, combine, dispatch, route


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts(FeedForward):
    """`n_experts` layers of width `d_ff`; a token uses `top_k` of them and all shared ones."""

    n_experts: int = 8  # number of routed experts
    top_k: int = 2  # routed experts per token
    d_ff: int = 512  # hidden width of one expert
    experts: Literal["silu", "swiglu"] = "silu"  # form of an expert: that of `dense` or `swiglu`
    n_shared_experts: int = 0  # experts that every token uses in addition
    balance_loss: float = 0.01  # coefficient of the auxiliary loss that balances the load; 0: none
    bias_rate: float = 0.0  # step size of the bias that balances the load, per step; 0: no bias
    kernel: grouped_matmul.Kernel = "auto"  # implementation; all compute the same function

    def problems(self) -> Iterator[Problem]:
        for name in ("n_experts", "top_k", "d_ff"):
            if getattr(self, name) < 1:
                yield Problem(name, f"must be at least 1, got {getattr(self, name)}")
        if self.top_k > self.n_experts:
            yield Problem("top_k", f"must be at most n_experts {self.n_experts}, got {self.top_k}")
        for name in ("n_shared_experts", "balance_loss", "bias_rate"):
            if getattr(self, name) < 0:
                yield Problem(name, f"must not be negative, got {getattr(self, name)}")

    def cost(self, d_model: int) -> Cost:
        idle = (self.n_experts - self.top_k) * self._one(self.d_ff).cost(d_model).params
        active = self.active_params(d_model)
        return Cost(params=active + idle, flops=2 * active, state_bytes=0)

    def active_params(self, d_model: int) -> int:
        used = self.top_k + self.n_shared_experts
        return d_model * self.n_experts + used * self._one(self.d_ff).cost(d_model).params

    def build(self, d_model: int, dropout: float = 0.0) -> FeedForwardLayer:
        return _MixtureOfExperts(self, d_model, dropout)

    def shared(self) -> FeedForward | None:
        """Return one layer equal to all shared experts, as wide as all together; None if none."""
        width = self.n_shared_experts * self.d_ff
        return self._one(width) if width else None

    def _one(self, d_ff: int) -> FeedForward:
        return {"silu": Dense, "swiglu": SwiGLU}[self.experts](d_ff=d_ff)


class _MixtureOfExperts(FeedForwardLayer):
    bias_E: Tensor
    choices_E: Tensor
    tokens: Tensor
    entropy: Tensor

    def __init__(self, config: MixtureOfExperts, d_model: int, dropout: float) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.loss_needs_whole_batch = config.balance_loss > 0
        self._counted = dict[int, tuple[Tensor, int, Tensor]]()  # by part of a divided batch
        self._load_E: Tensor | None = None  # f_e over the whole batch, while it is divided
        experts, d_ff = config.n_experts, config.d_ff

        def stacked(out_width: int, in_width: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(experts, out_width, in_width))  # `initialise` fills it

        self.router = nn.Linear(d_model, experts, bias=False)
        self.gate_proj = stacked(d_ff, d_model) if config.experts == "swiglu" else None
        self.up_proj = stacked(d_ff, d_model)
        self.down_proj = stacked(d_model, d_ff)
        shared = config.shared()
        self.shared = shared.build(d_model, dropout) if shared else None
        # buffers are saved in checkpoints, so that a resumed run has the same bits
        self.register_buffer("bias_E", torch.zeros(experts))
        self.register_buffer("choices_E", torch.zeros(experts, dtype=torch.int64))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))
        self.register_buffer("entropy", torch.zeros(()))  # sum over the tokens

    def forward(self, x_D: Tensor) -> Tensor:
        x_ND = x_D.flatten(0, -2)
        return self._experts(x_ND, self._route(x_ND)).view_as(x_D)

    def forward_with_loss(self, x_D: Tensor) -> tuple[Tensor, Tensor | None]:
        x_ND = x_D.flatten(0, -2)
        routing = self._route(x_ND)
        if self.division is None:
            balance, tokens = routing.balance, len(routing.weight_NK)
            self._count(_choices(routing), tokens, routing.entropy * tokens)
        else:
            balance = self._balance_of_part(routing)
        loss = self.config.balance_loss * balance if self.config.balance_loss else None
        return self._experts(x_ND, routing).view_as(x_D), loss

    def drain_statistics(self) -> dict[str, object]:
        """Return and reset `load`, `entropy` and `dropped`.

        `load` is the fraction of the choices per expert, `entropy` that of the router in nats, and
        `dropped` the fraction of the choices that no expert computed.
        """
        tokens = self.tokens.item()
        choices = max(1, tokens * self.config.top_k)
        load = (self.choices_E.double() / choices).tolist()
        entropy = self.entropy.item() / max(1, tokens)
        dropped = 1 - self.choices_E.sum().item() / choices if tokens else 0.0
        for counted in (self.choices_E, self.tokens, self.entropy):
            counted.zero_()
        return {"load": load, "entropy": entropy, "dropped": dropped}

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        d_model = self.router.in_features
        config = self.config
        kernel = grouped_matmul.resolve(config.kernel, device, dtype, config.d_ff, d_model)
        return f"experts {kernel}"

    def _route(self, x_ND: Tensor) -> Routing:
        """Return the routing, computed in float32 or wider: rounded scores change the choice."""
        weight_ED = self.router.weight
        wide = torch.promote_types(weight_ED.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = linear(x_ND.to(wide), weight_ED.to(wide))
            return route(logits_NE, self.bias_E, self.config.top_k)

    def _experts(self, x_ND: Tensor, routing: Routing) -> Tensor:
        x_MD = dispatch(x_ND, routing)
        hidden_MF = self._product(x_MD, self.up_proj, routing)
        if self.gate_proj is None:
            hidden_MF = silu(hidden_MF)
        else:
            hidden_MF = silu(self._product(x_MD, self.gate_proj, routing)) * hidden_MF
        if self.dropout and self.training:  # by token and choice, wherever their row is
            kept_MF = dropout(torch.ones_like(hidden_MF), self.dropout)
            hidden_MF = hidden_MF * kept_MF[routing.row_NK.flatten().argsort()]
        y_ND = combine(self._product(hidden_MF, self.down_proj, routing), routing)
        return y_ND if self.shared is None else y_ND + self.shared(x_ND)

    def _product(self, x_M: Tensor, weight_E: Tensor, routing: Routing) -> Tensor:
        weight_E, kernel = weight_E.to(x_M.dtype), self.config.kernel
        return grouped_matmul.grouped_matmul(x_M, weight_E, routing.ends_E, kernel)

    @opaque
    def _balance_of_part(self, routing: Routing) -> Tensor:
        """Return the share of a part of the batch in E sum_e f_e P_e, f_e of the whole batch.

        A part counts once, however often it is seen. The mean over the parts is the loss.
        """
        assert self.division is not None
        tokens = len(routing.weight_NK)
        with torch.no_grad():
            counted = (_choices(routing), tokens, routing.entropy.detach() * tokens)
            self._counted[self.division.part] = counted
            if self._load_E is None and self.division.parts == 1:
                self.end_pass()
        if self._load_E is None:
            return routing.balance
        return self.config.n_experts * (self._load_E * routing.mean_p_E).sum()

    @torch.no_grad()
    def end_pass(self) -> None:
        choices_E, _, _ = self._whole()
        self._load_E = (choices_E / choices_E.sum()).to(self.entropy.dtype)

    @torch.no_grad()
    def end_step(self) -> None:
        choices_E, tokens, entropy = self._whole()
        self._count(choices_E.long(), tokens, entropy)
        self._counted.clear()
        self._load_E = None

    def _whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return choices per expert, tokens and entropy, summed over the whole batch, float64."""
        assert self.division is not None
        choices, tokens, entropies = zip(*self._counted.values(), strict=True)
        n_tokens = torch.full_like(entropies[0], sum(tokens))
        scalars = torch.stack([n_tokens, torch.stack(entropies).sum()])
        own = torch.cat([torch.stack(choices).sum(0).double(), scalars.double()])
        total = self.division.total(own)
        return total[:-2], total[-2], total[-1]

    @torch.no_grad()
    def _count(self, choices_E: Tensor, tokens: int | Tensor, entropy: Tensor) -> None:
        self.choices_E += choices_E
        self.tokens += tokens if isinstance(tokens, int) else tokens.long()
        self.entropy += entropy
        if self.config.bias_rate:
            mean = tokens * self.config.top_k / self.config.n_experts
            self.bias_E += self.config.bias_rate * torch.sign(mean - choices_E)


def _choices(routing: Routing) -> Tensor:
    """Return the number of tokens that chose each expert."""
    return routing.ends_E.diff(prepend=routing.ends_E.new_zeros(1))
