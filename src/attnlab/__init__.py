"""attnlab: find out which attention mechanism your model should use, in controlled comparisons.

Every command of the command line is a function:

    run             train the variants of a study and compare them
    plan            estimate time, disk space and power of a study (attnlab run --plan)
    train           train one run of a study, also as one of torchrun's processes
    extend          continue a finished run for more steps
    check           check mechanisms for every property of the contract
    probe           train small models on tasks: what mechanisms recall, copy and track
    reproduce       run a published result again: inside or outside of its band
    bench           measure time, memory and decode state of mechanisms
    report          rebuild the report of a study
    compare         compare studies, variants and single runs in one report
    pack            pack the runs of a study into one file
    unpack          restore the run folders of a packed study
    evaluate_tasks  evaluate a run on tasks of lm-evaluation-harness (attnlab eval)
    generate        generate text from a trained run
    export          write a run's model into a folder that stands alone
    catalog         list studies, mechanisms and settings (attnlab list)
    doctor          examine devices, packages, kernels, data and disk

Further names build studies (`Study`, `RunConfig`, `ModelConfig`, the mechanisms, ...), read results
(`load_results`, `analyse`, `load_run`, `load_study`), test a mechanism (`assert_correct`), or
select a local clone of flash-linear-attention (`use_fla`). `dir(attnlab)` has all names. A name is
imported when it is first used: reports and lists do without torch.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.config import suggestion

if TYPE_CHECKING:
    from attnlab.analysis.analysis import Analysis as Analysis
    from attnlab.analysis.analysis import analyse as analyse
    from attnlab.analysis.hypotheses.across_studies import (
        AdvantageGrows as AdvantageGrows,
    )
    from attnlab.analysis.hypotheses.across_studies import (
        BetterThanInStudy as BetterThanInStudy,
    )
    from attnlab.analysis.hypotheses.across_studies import (
        NeededInEveryLayer as NeededInEveryLayer,
    )
    from attnlab.analysis.hypotheses.in_range import AccuracyInRange as AccuracyInRange
    from attnlab.analysis.hypotheses.in_range import CostInRange as CostInRange
    from attnlab.analysis.hypotheses.in_range import LossInRange as LossInRange
    from attnlab.analysis.hypotheses.ordered import Ordered as Ordered
    from attnlab.analysis.hypotheses.ordered import OrderedByCost as OrderedByCost
    from attnlab.analysis.hypotheses.ordered import Ranked as Ranked
    from attnlab.analysis.hypotheses.ordered import SameOrder as SameOrder
    from attnlab.analysis.hypotheses.pairs import Better as Better
    from attnlab.analysis.hypotheses.pairs import BetterAtLength as BetterAtLength
    from attnlab.analysis.hypotheses.pairs import Equivalent as Equivalent
    from attnlab.analysis.runs_table import load_results as load_results
    from attnlab.benchmarking.bench import Bench as Bench
    from attnlab.benchmarking.bench import bench as bench
    from attnlab.checks.suite import assert_correct as assert_correct
    from attnlab.checks.targets import check as check
    from attnlab.data.arithmetic import Arithmetic as Arithmetic
    from attnlab.data.mad import Compression as Compression
    from attnlab.data.mad import InContextRecall as InContextRecall
    from attnlab.data.mad import Memorization as Memorization
    from attnlab.data.mad import SelectiveCopying as SelectiveCopying
    from attnlab.data.reasoning import Depo as Depo
    from attnlab.data.reasoning import Mano as Mano
    from attnlab.data.recall import MQAR as MQAR
    from attnlab.data.recall import FuzzyRecall as FuzzyRecall
    from attnlab.data.recall import Needle as Needle
    from attnlab.data.ruler import CommonWords as CommonWords
    from attnlab.data.ruler import VariableTracking as VariableTracking
    from attnlab.data.state_tracking import StateTracking as StateTracking
    from attnlab.data.stdlib import SitePackages as SitePackages
    from attnlab.data.stdlib import Stdlib as Stdlib
    from attnlab.data.text import Text as Text
    from attnlab.data.text import TinyShakespeare as TinyShakespeare
    from attnlab.data.text import WikiText2 as WikiText2
    from attnlab.data.tokenizer import BPE as BPE
    from attnlab.data.tokenizer import GPT2 as GPT2
    from attnlab.data.tokenizer import Bytes as Bytes
    from attnlab.data.tokenizer import Ids as Ids
    from attnlab.data.tokens import Tokens as Tokens
    from attnlab.inference.export import export as export
    from attnlab.inference.generate import Sampling as Sampling
    from attnlab.inference.generate import generate as generate
    from attnlab.inference.generate import generate_tokens as generate_tokens
    from attnlab.inference.lm_harness import evaluate_tasks as evaluate_tasks
    from attnlab.inference.saved_model import load_run as load_run
    from attnlab.kernels.flash_linear_attention import use_fla as use_fla
    from attnlab.mechanism import Cost as Cost
    from attnlab.mechanism import Mechanism as Mechanism
    from attnlab.mechanism import MechanismConfig as MechanismConfig
    from attnlab.mechanisms.deepseek_sparse import DeepseekSparse as DeepseekSparse
    from attnlab.mechanisms.delta_net import DeltaNet as DeltaNet
    from attnlab.mechanisms.fla_layer import fla_layer as fla_layer
    from attnlab.mechanisms.gated_delta_net import GatedDeltaNet as GatedDeltaNet
    from attnlab.mechanisms.gated_delta_product import GatedDeltaProduct as GatedDeltaProduct
    from attnlab.mechanisms.gla import GLA as GLA
    from attnlab.mechanisms.grouped_query import GroupedQuery as GroupedQuery
    from attnlab.mechanisms.identity import Identity as Identity
    from attnlab.mechanisms.kda import KDA as KDA
    from attnlab.mechanisms.lightning_attention import LightningAttention as LightningAttention
    from attnlab.mechanisms.mamba2 import Mamba2 as Mamba2
    from attnlab.mechanisms.mla import MLA as MLA
    from attnlab.mechanisms.moba import MOBA as MOBA
    from attnlab.mechanisms.nsa import NSA as NSA
    from attnlab.mechanisms.rwkv7 import RWKV7 as RWKV7
    from attnlab.mechanisms.sliding_window import SlidingWindow as SlidingWindow
    from attnlab.model.feedforward import Dense as Dense
    from attnlab.model.feedforward import NoFeedForward as NoFeedForward
    from attnlab.model.feedforward import SwiGLU as SwiGLU
    from attnlab.model.language_model import ModelConfig as ModelConfig
    from attnlab.model.layer_pattern import ByLayer as ByLayer
    from attnlab.model.layer_pattern import every_nth as every_nth
    from attnlab.model.layer_pattern import first_middle_last as first_middle_last
    from attnlab.model.layer_pattern import first_n as first_n
    from attnlab.model.layer_pattern import last_n as last_n
    from attnlab.model.layer_pattern import spread_evenly as spread_evenly
    from attnlab.model.mixture_of_experts import MixtureOfExperts as MixtureOfExperts
    from attnlab.record.packed_study import pack as pack
    from attnlab.record.packed_study import unpack as unpack
    from attnlab.reporting.files import compare as compare
    from attnlab.reporting.files import report as report
    from attnlab.reporting.profile import profile as profile
    from attnlab.runner.doctor import doctor as doctor
    from attnlab.runner.execute import train as train
    from attnlab.runner.extend import extend as extend
    from attnlab.runner.plan import plan as plan
    from attnlab.runner.probe import probe as probe
    from attnlab.runner.reproduce import reproduce as reproduce
    from attnlab.runner.run import ViolatedPropertyError as ViolatedPropertyError
    from attnlab.runner.run import run as run
    from attnlab.study.catalog import Catalog as Catalog
    from attnlab.study.catalog import catalog as catalog
    from attnlab.study.matching import Match as Match
    from attnlab.study.study import Study as Study
    from attnlab.study.sweep import sweep as sweep
    from attnlab.study.targets import load_study as load_study
    from attnlab.training.config import EvalConfig as EvalConfig
    from attnlab.training.config import TrainConfig as TrainConfig
    from attnlab.training.config import Tuning as Tuning
    from attnlab.training.run import RunConfig as RunConfig
    from attnlab.version import __version__ as __version__

# Each name stands once, in the block above, which is read here for the lazy imports.
_HOME = {
    alias.name: str(node.module)
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and any(alias.asname for alias in node.names)
    for alias in node.names
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"attnlab has no {name!r}{suggestion(name, __all__)}")
    return getattr(import_module(_HOME[name]), name)
