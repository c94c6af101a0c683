"""The same function twice must tie, and a report that separates the two is wrong."""

from support.written_study import steady, write_run, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.controls import controls_of
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.record import RunFolder
from attnlab.reporting.pages import markdown

SAME = {"function": "gqa_1"}
MATH = {"function": "low_rank", "kernel": "math", "step_time": 0.005, "peak_memory_bytes": 4 << 30}
FLASH = MATH | {"kernel": "flash", "step_time": 0.004, "peak_memory_bytes": 3 << 30}


def controls(folder, losses, **more):
    return controls_of(verdict_of(read_table(write_study(folder, losses, **more))))


def test_variants_that_differ_in_name_alone_are_recognised(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 2)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert (control.names, control.same_rate) == (("gqa_1", "mqa"), True)
    assert (control.largest_difference, control.ties) == (0, True)
    assert "equal to the last bit" in control.note


def test_many_names_of_one_function_are_a_sentence_of_a_few(tmp_path):
    names = [f"copy_{number}" for number in range(30)]
    losses = {name: steady(5.0, 1, seeds=2) for name in names}
    (control,) = controls(tmp_path, losses, **dict.fromkeys(names, SAME))
    assert control.names == tuple(names)
    assert control.note.startswith("copy_0, copy_1, copy_2 and 27 others are the same function")


def test_different_settings_are_no_control_even_with_equal_losses(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 2)}
    assert controls(tmp_path, losses) == ()


def test_a_control_within_the_noise_ties(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 3)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert control.ties is True
    assert control.largest_difference > 0
    assert "and they are not distinguishable" in control.note


def test_a_control_that_is_separated_is_reported_as_an_error(tmp_path):
    losses = {
        "mha": steady(5.0, 1),
        "gqa_1": steady(5.1, 2),
        "mqa": steady(5.2, 3),
        "mla": steady(5.0, 4),
    }
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert control.ties is False
    assert "do not trust this verdict" in control.note


def test_a_control_tuned_to_another_rate_is_told_from_one_that_was_not(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": [None] * 5}
    write_study(tmp_path, losses)
    for seed, loss in enumerate(steady(5.3, 3)):
        write_run(RunFolder(tmp_path, "mqa", seed), loss, rate=6e-4, function="gqa_1")
    (control,) = controls_of(verdict_of(read_table(tmp_path)))
    assert control.same_rate is False
    assert "different learning rates" in control.note


def test_without_a_verdict_a_control_is_not_judged(tmp_path):
    (control,) = controls(tmp_path, {"mha": [5.0], "gqa_1": [5.1], "mqa": [5.1]}, mqa=SAME)
    assert (control.ties, control.largest_difference) == (None, 0)


def test_variants_that_differ_in_the_kernel_alone_are_one_function_at_two_prices(tmp_path):
    losses = {"mha": steady(5.0, 1), "lora": steady(5.1, 2), "flash": steady(5.1, 3)}
    analysis = analyse(write_study(tmp_path, losses, lora=MATH, flash=FLASH))
    (control,) = analysis.controls
    assert (control.names, control.kernels) == (("lora", "flash"), ("math", "flash"))
    assert (control.same_rate, control.ties) == (True, True)
    assert control.note.startswith(
        "lora and flash are the same function on different kernels (math, flash); their losses"
    )
    assert control.savings == (
        "flash (kernel flash) compared with lora (kernel math): 1.00 ms/step less (4.00 ms instead "
        "of 5.00 ms); 1.00 GiB less peak memory (3.00 GiB instead of 4.00 GiB)."
    )
    assert control.savings in markdown(analysis, None)
    assert [set(names) for names in analysis.functions] == [{"mha"}, {"lora", "flash"}]
    front = next(front for front in analysis.fronts if front.key == "step_time")
    assert front.front == ("flash",)  # mha, which costs nothing here, was not timed


def test_a_kernel_that_computes_something_else_is_reported_as_an_error(tmp_path):
    losses = {
        "mha": steady(5.0, 1),
        "lora": steady(5.1, 2),
        "flash": steady(5.2, 3),
        "mla": steady(5.0, 4),
    }
    (control,) = controls(tmp_path, losses, lora=MATH, flash=FLASH)
    assert control.ties is False
    assert "do not trust this verdict" in control.note


def test_a_kernel_that_buys_nothing_is_said_to_be_the_same(tmp_path):
    losses = {"lora": steady(5.1, 2), "flash": steady(5.1, 3)}
    alike = FLASH | {"step_time": 0.0051, "peak_memory_bytes": (4 << 30) + (1 << 20)}
    (control,) = controls(tmp_path / "a", losses, lora=MATH, flash=alike)
    assert "the same time within 5% (5.10 ms instead of 5.00 ms)" in control.savings
    assert "the same peak memory within 1%" in control.savings
    unlike = FLASH | {"device": "NVIDIA H200"}
    here = MATH | {"device": "NVIDIA H100"}
    (control,) = controls(tmp_path / "b", losses, lora=here, flash=unlike)
    assert control.savings == ""  # times of two devices compare nothing


def test_one_kernel_saves_nothing(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 3)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert (control.kernels, control.savings) == ((), "")


def test_a_window_that_covers_the_sequence_is_plain_attention(tmp_path):
    losses = {"mha": steady(5.0, 1), "wide": steady(5.0, 1), "narrow": steady(5.1, 2)}
    write_study(tmp_path, {name: [None] * 5 for name in losses})
    windows = {"wide": 1024, "narrow": 512}
    for name, of in losses.items():
        for seed, loss in enumerate(of):
            run = RunFolder(tmp_path, name, seed)
            mechanism = {"kind": "grouped_query", "n_heads": 4, "kernel": "auto"}
            if name in windows:
                mechanism |= {"kind": "sliding_window", "window": windows[name]}
            train = {"seq_len": 1024}
            run.open({"identity": "x", "model": {"mechanisms": [mechanism]}, "train": train}, {})
            run.finish({"status": "finished", "final_loss": loss, "alarms": []})
    verdict = verdict_of(read_table(tmp_path))
    assert verdict.functions == (("mha", "wide"), ("narrow",))
    (control,) = controls_of(verdict)
    assert control.note.startswith(
        "mha and wide are the same function (the window of wide covers the whole sequence), and"
    )
