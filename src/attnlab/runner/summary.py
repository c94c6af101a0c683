"""What a run cost: the part of summary.json that is the same for every outcome."""

from typing import Any

from attnlab.device.memory import PeakMemory
from attnlab.training.loop import Clock
from attnlab.training.run import RunConfig


def cost_of(
    config: RunConfig, vocab_size: int, steps: int, clock: Clock, memory: PeakMemory
) -> dict[str, Any]:
    """Time in seconds, memory and decode state in bytes, of a run that came as far as `steps`."""
    tokens_a_step = config.train.batch_size * config.train.seq_len
    seconds = clock.step_seconds
    cost = config.model.cost(vocab_size, config.train.seq_len)
    parts = config.model.parts(vocab_size)
    return {
        "steps": steps,
        "tokens": steps * tokens_a_step,
        "total_time": clock.total_seconds,
        "train_time": clock.train_seconds,
        "eval_time": clock.eval_seconds,
        "compile_time": clock.compile_seconds,
        "step_time": seconds,
        "tokens_per_second": tokens_a_step / seconds if seconds else None,
        "peak_memory_bytes": memory.peak_bytes,
        "attention_type": [m.kind() for m in config.model.per_layer()],
        "parameters": parts._asdict() | {"total": parts.total, "active": parts.active},
        "flops_per_token": cost.flops,
        "state_bytes": cost.state_bytes,
    }
