"""attnlab's language model as a model of the transformers library.

`attnlab export --to hf` copies this file into a folder that AutoModelForCausalLM loads with
trust_remote_code=True. The model itself is that of the installed attnlab, so that every mechanism
has one implementation.

Prompts of several lengths are one batch if they are padded on the left and an attention mask says
so: rows with equally much padding are read together, without it. The cache holds the decode state
of every layer, and the tokens that were read, from which it makes a larger state when it is full.

Shapes: B batch, T tokens, V vocabulary, R rows of the batch with equally much padding.
"""

import importlib.util

if importlib.util.find_spec("attnlab") is None:
    raise ImportError(
        "this model computes with the package attnlab, which is not installed here: "
        "pip install attnlab (or pip install -e . in its source)"
    )

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  registers the kinds
from attnlab.config import read_from_record
from attnlab.model.initialization import linear_default
from attnlab.model.language_model import LanguageModel, ModelConfig


class AttnlabConfig(PretrainedConfig):
    """Settings of the model: `model` are those of `attnlab.ModelConfig`.

    `sources` holds files of mechanisms that are not attnlab's own, which are executed: a user
    agrees to that with trust_remote_code=True.
    """

    model_type = "attnlab"

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        vocab_size: int = 256,
        sources: dict[str, str] | None = None,
        **others: Any,
    ) -> None:
        self.model, self.vocab_size, self.sources = model, vocab_size, sources or {}
        super().__init__(**others)

    def settings(self) -> ModelConfig:
        """Return the settings of attnlab's model. Raises ConfigError for unknown ones."""
        folder = _written(tuple(sorted(self.sources.items()))) if self.sources else None
        with read_from_record(folder, " that this model does not carry"):
            return ModelConfig.from_dict(self.model or {})


class AttnlabForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with the methods of transformers, `generate` among them."""

    config: AttnlabConfig
    config_class = AttnlabConfig
    base_model_prefix = "model"
    _is_stateful = True  # a decode state cannot forget its last tokens, as assistants need

    def __init__(self, config: AttnlabConfig) -> None:
        super().__init__(config)
        self.model = _built(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: "DecodeStates | None" = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> Any:
        """Return `logits_BTV`, with `labels` the mean loss, with `use_cache` the states.

        Args:
            input_ids: the tokens, (B, T); after `past_key_values`, those that follow.
            attention_mask: 0 for padding, on the left; on the right only without a cache.
            past_key_values: what an earlier call returned; it is changed in place.
            labels: the tokens again; -100 leaves one out. Auxiliary losses are not added.
            use_cache: True to return the decode states.
            logits_to_keep: only the last ones are returned; 0: all.
            return_dict: False to return a tuple.
        """
        states = past_key_values
        if states is None:
            padding_B = _padding(input_ids, attention_mask, right=not use_cache)
            states = DecodeStates(padding_B, self.config.max_position_embeddings)
        if use_cache or past_key_values is not None:
            logits_BTV = states.read(self.model, input_ids, logits_to_keep)
        else:
            logits_BTV = states.logits(self.model, input_ids)[:, -logits_to_keep:]
        loss = None
        if labels is not None:
            of_next_BTV = logits_BTV[:, :-1].flatten(0, 1).float()
            loss = cross_entropy(of_next_BTV, labels[:, 1:].flatten())
        after: Any = states if use_cache else None
        result = CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=after)
        return result.to_tuple() if return_dict is False else result

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the states

    def _init_weights(self, module: nn.Module) -> None:
        """Restore the buffers that no file holds: transformers has replaced them by memory."""
        for name in module._non_persistent_buffers_set:
            path = next(path for path, one in self.named_modules() if one is module)
            original = _built(self.config).get_submodule(path.removeprefix("model."))
            with torch.no_grad():
                module.get_buffer(name).copy_(original.get_buffer(name))


class DecodeStates:
    """The tokens that were read of a batch, and the decode states after them."""

    is_compileable = False

    def __init__(self, padding_B: Tensor, capacity: int) -> None:
        self.rows = [
            _Rows(int(padding), (padding_B == padding).nonzero()[:, 0], capacity)
            for padding in padding_B.unique()
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that were read, padding included."""
        del layer_idx
        return 0 if self.rows[0].tokens_RT is None else self.rows[0].end

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row b continue what row `beam_idx[b]` has read, which has equally much padding."""
        for rows in self.rows:
            rows.reorder(beam_idx)

    def read(self, model: LanguageModel, tokens_BT: Tensor, keep: int = 0) -> Tensor:
        """Return `logits_BTV` after each of the tokens, or after the last ones if `keep` is not 0.

        Logits after padding are zero.
        """

        def read(rows: "_Rows", new_RT: Tensor) -> Tensor:
            return rows.read(model, new_RT, keep)

        return self._joined(tokens_BT, keep, read)

    def logits(self, model: LanguageModel, tokens_BT: Tensor) -> Tensor:
        """Return `logits_BTV`, with gradients, and remember nothing."""

        def read(rows: "_Rows", new_RT: Tensor) -> Tensor:
            del rows
            return model.logits(new_RT)

        return self._joined(tokens_BT, 0, read)

    def _joined(
        self, tokens_BT: Tensor, keep: int, read: Callable[["_Rows", Tensor], Tensor]
    ) -> Tensor:
        parts = list[Tensor]()
        for rows in self.rows:
            new_RT = tokens_BT[rows.place_R]
            if rows.tokens_RT is None:
                new_RT = new_RT[:, rows.padding :]
            logits_RTV = read(rows, new_RT)
            missing = (keep or tokens_BT.shape[1]) - logits_RTV.shape[1]
            parts.append(nn.functional.pad(logits_RTV, (0, 0, max(missing, 0), 0)))
        order_B = torch.cat([rows.place_R for rows in self.rows]).argsort()
        return torch.cat(parts)[order_B]


class _Rows:
    """Rows of a batch with equally much padding: their tokens and their decode states."""

    def __init__(self, padding: int, place_R: Tensor, capacity: int) -> None:
        self.padding, self.place_R, self.capacity = padding, place_R, capacity
        self.tokens_RT: Tensor | None = None
        self.states: list[Any] | None = None

    @property
    def end(self) -> int:
        """The number of tokens that were read, padding included."""
        return self.padding + (0 if self.tokens_RT is None else self.tokens_RT.shape[1])

    def reorder(self, beam_B: Tensor) -> None:
        assert self.tokens_RT is not None
        from_R = beam_B.to(self.place_R.device)[self.place_R]
        chosen_R = torch.searchsorted(self.place_R, from_R)
        self.tokens_RT, self.states = self.tokens_RT[chosen_R], None  # made again from the tokens

    def read(self, model: LanguageModel, new_RT: Tensor, keep: int) -> Tensor:
        """Return `logits_RTV` after each of the new tokens, or after the last one if `keep` is 1.

        Without states that have room, the whole text is read at once.
        """
        before, new = self.tokens_RT, new_RT.shape[1]
        self.tokens_RT = new_RT if before is None else torch.cat([before, new_RT], 1)
        if self.states is not None and self.tokens_RT.shape[1] <= self.capacity:
            steps = list(self._steps(model, new_RT))
            return torch.stack(steps[-keep:], 1)
        if not model.decodes:
            return model.logits(self.tokens_RT)[:, -(keep or new) :]
        while self.capacity < self.tokens_RT.shape[1] + 1:
            self.capacity *= 2
        last_RV, self.states = model.prefill(self.tokens_RT, self.capacity)
        return last_RV[:, None] if keep == 1 else model.logits(self.tokens_RT)[:, -(keep or new) :]

    def _steps(self, model: LanguageModel, new_RT: Tensor) -> Iterator[Tensor]:
        for token_R in new_RT.unbind(1):
            assert self.states is not None
            logits_RV, self.states = model.step(token_R, self.states)
            yield logits_RV


def _padding(tokens_BT: Tensor, mask_BT: Tensor | None, *, right: bool) -> Tensor:
    """Return the number of padding tokens on the left of every row.

    Raises ValueError for padding elsewhere, but for some on the `right`, where it is read as text
    and changes nothing before it.
    """
    if mask_BT is None:
        return tokens_BT.new_zeros(len(tokens_BT))
    is_text_BT = mask_BT != 0
    if is_text_BT.ndim != 2 or is_text_BT.shape != tokens_BT.shape:
        raise ValueError(f"expected an attention mask of shape {tuple(tokens_BT.shape)}")
    left_B = (~is_text_BT).cumprod(1).sum(1)
    right_B = (~is_text_BT).flip(1).cumprod(1).sum(1)
    if (left_B == tokens_BT.shape[1]).any():
        raise ValueError("a row of the attention mask has no token")
    if (left_B + is_text_BT.sum(1) + right_B != tokens_BT.shape[1]).any():
        raise ValueError("the attention mask leaves out tokens between others")
    if right_B.any() and not right:
        raise ValueError("pad on the left to generate: tokenizer.padding_side = 'left'")
    return left_B


def _built(config: AttnlabConfig) -> LanguageModel:
    """Return the model on the CPU, with real buffers, and parameters in uninitialised memory."""
    with torch.device("cpu"), linear_default(lambda _: None):
        return LanguageModel(config.settings(), config.vocab_size)


@cache
def _written(sources: tuple[tuple[str, str], ...]) -> Path:
    """Return a folder with these files, which stays as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="attnlab-sources-")
    _folders.append(folder)
    for name, source in sources:
        path = Path(folder.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return Path(folder.name)


_folders = list[tempfile.TemporaryDirectory[str]]()
