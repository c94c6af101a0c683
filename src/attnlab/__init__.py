"""attnlab: which attention mechanism should my model use? Controlled comparisons with evidence.

What a study file needs is importable from here, and what the command line does:

    run         a study from question to verdict     check, assert_correct   are mechanisms right?
    extend      a finished run, and more steps       load_run, generate      a trained model, text
    analyse     a study's folder, as one object      export_run              a model as a folder
    use_fla     flash-linear-attention from a clone of one's own

Everything else is importable from its own module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attnlab.version import __version__

if TYPE_CHECKING:
    from attnlab.analysis.analysis import Analysis, analyse
    from attnlab.asked import use_fla
    from attnlab.by_layer import ByLayer
    from attnlab.checks.suite import assert_correct
    from attnlab.checks.targets import check
    from attnlab.claim import Alike, AmongBest, AmongWorst, InRange, Ordered, Within
    from attnlab.data.stdlib import Stdlib
    from attnlab.data.text import Text
    from attnlab.data.tokenizer import GPT2
    from attnlab.data.tokens import Tokens
    from attnlab.data.wikitext2 import WikiText2
    from attnlab.eval_config import EvalConfig
    from attnlab.extending import extend
    from attnlab.feedforward import Dense, MixtureOfExperts, SwiGLU
    from attnlab.generation import Sampling, generate
    from attnlab.matching import Match
    from attnlab.mechanism import Cost, Mechanism, MechanismConfig
    from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
    from attnlab.mechanisms.delta_net import DeltaNet
    from attnlab.mechanisms.fla_layer import fla_layer
    from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
    from attnlab.mechanisms.gla import GLA
    from attnlab.mechanisms.grouped_query import GroupedQuery
    from attnlab.mechanisms.identity import Identity
    from attnlab.mechanisms.kda import KDA
    from attnlab.mechanisms.mamba2 import Mamba2
    from attnlab.mechanisms.mla import MLA
    from attnlab.mechanisms.sliding_window import SlidingWindow
    from attnlab.model import ModelConfig
    from attnlab.placement import every_nth, first_middle_last, first_n, last_n, spread_evenly
    from attnlab.question import BestForCost, BestQuality, EveryLayer, GivesUp, Needed, Pick
    from attnlab.run_config import RunConfig
    from attnlab.running import BrokenPromiseError, run
    from attnlab.study import Study, load_study
    from attnlab.train_config import TrainConfig
    from attnlab.trained import export_run, load_run
    from attnlab.tuning import LearningRates

# loaded when asked for, so that analysis and report, which live here too, do without torch
_HOME = {
    "Alike": "claim",
    "AmongBest": "claim",
    "AmongWorst": "claim",
    "Analysis": "analysis.analysis",
    "BestForCost": "question",
    "BestQuality": "question",
    "BrokenPromiseError": "running",
    "ByLayer": "by_layer",
    "Cost": "mechanism",
    "DeepseekSparse": "mechanisms.deepseek_sparse",
    "DeltaNet": "mechanisms.delta_net",
    "Dense": "feedforward",
    "EvalConfig": "eval_config",
    "EveryLayer": "question",
    "GLA": "mechanisms.gla",
    "GPT2": "data.tokenizer",
    "GatedDeltaNet": "mechanisms.gated_delta_net",
    "GivesUp": "question",
    "GroupedQuery": "mechanisms.grouped_query",
    "Identity": "mechanisms.identity",
    "InRange": "claim",
    "KDA": "mechanisms.kda",
    "LearningRates": "tuning",
    "MLA": "mechanisms.mla",
    "Mamba2": "mechanisms.mamba2",
    "Match": "matching",
    "Mechanism": "mechanism",
    "MechanismConfig": "mechanism",
    "MixtureOfExperts": "feedforward",
    "ModelConfig": "model",
    "Needed": "question",
    "Ordered": "claim",
    "Pick": "question",
    "RunConfig": "run_config",
    "Sampling": "generation",
    "SlidingWindow": "mechanisms.sliding_window",
    "Stdlib": "data.stdlib",
    "Study": "study",
    "SwiGLU": "feedforward",
    "Text": "data.text",
    "Tokens": "data.tokens",
    "TrainConfig": "train_config",
    "WikiText2": "data.wikitext2",
    "Within": "claim",
    "analyse": "analysis.analysis",
    "assert_correct": "checks.suite",
    "check": "checks.targets",
    "every_nth": "placement",
    "export_run": "trained",
    "extend": "extending",
    "first_middle_last": "placement",
    "first_n": "placement",
    "fla_layer": "mechanisms.fla_layer",
    "generate": "generation",
    "last_n": "placement",
    "load_run": "trained",
    "load_study": "study",
    "run": "running",
    "spread_evenly": "placement",
    "use_fla": "asked",
}

__all__ = [
    "GLA",
    "GPT2",
    "KDA",
    "MLA",
    "Alike",
    "AmongBest",
    "AmongWorst",
    "Analysis",
    "BestForCost",
    "BestQuality",
    "BrokenPromiseError",
    "ByLayer",
    "Cost",
    "DeepseekSparse",
    "DeltaNet",
    "Dense",
    "EvalConfig",
    "EveryLayer",
    "GatedDeltaNet",
    "GivesUp",
    "GroupedQuery",
    "Identity",
    "InRange",
    "LearningRates",
    "Mamba2",
    "Match",
    "Mechanism",
    "MechanismConfig",
    "MixtureOfExperts",
    "ModelConfig",
    "Needed",
    "Ordered",
    "Pick",
    "RunConfig",
    "Sampling",
    "SlidingWindow",
    "Stdlib",
    "Study",
    "SwiGLU",
    "Text",
    "Tokens",
    "TrainConfig",
    "WikiText2",
    "Within",
    "__version__",
    "analyse",
    "assert_correct",
    "check",
    "every_nth",
    "export_run",
    "extend",
    "first_middle_last",
    "first_n",
    "fla_layer",
    "generate",
    "last_n",
    "load_run",
    "load_study",
    "run",
    "spread_evenly",
    "use_fla",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"attnlab has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"attnlab.{_HOME[name]}"), name)
