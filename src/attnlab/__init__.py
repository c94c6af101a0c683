"""attnlab: which attention mechanism should my model use? Controlled comparisons with evidence.

What a study file needs is importable from here, and what the command line does:

    run         a study from question to verdict     check, assert_correct   are mechanisms right?
    analyse     a study's folder, as one object      load_run, generate      a trained model, text

Everything else is importable from its own module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attnlab.version import __version__

if TYPE_CHECKING:
    from attnlab.analysis.analysis import Analysis, analyse
    from attnlab.checks.suite import assert_correct
    from attnlab.checks.targets import check
    from attnlab.data.stdlib import Stdlib
    from attnlab.data.text import Text
    from attnlab.data.tokens import Tokens
    from attnlab.data.wikitext2 import WikiText2
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
    from attnlab.question import BestForCost, BestQuality, EveryLayer, GivesUp, Needed, Pick
    from attnlab.run_config import RunConfig
    from attnlab.running import BrokenPromiseError, run
    from attnlab.study import Study, load_study
    from attnlab.train_config import TrainConfig
    from attnlab.trained import load_run
    from attnlab.tuning import LearningRates

# loaded when asked for, so that analysis and report, which live here too, do without torch
_HOME = {
    "Analysis": "analysis.analysis",
    "BestForCost": "question",
    "BestQuality": "question",
    "BrokenPromiseError": "running",
    "Cost": "mechanism",
    "DeepseekSparse": "mechanisms.deepseek_sparse",
    "DeltaNet": "mechanisms.delta_net",
    "Dense": "feedforward",
    "EveryLayer": "question",
    "GLA": "mechanisms.gla",
    "GatedDeltaNet": "mechanisms.gated_delta_net",
    "GivesUp": "question",
    "GroupedQuery": "mechanisms.grouped_query",
    "Identity": "mechanisms.identity",
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
    "analyse": "analysis.analysis",
    "assert_correct": "checks.suite",
    "check": "checks.targets",
    "fla_layer": "mechanisms.fla_layer",
    "generate": "generation",
    "load_run": "trained",
    "load_study": "study",
    "run": "running",
}

__all__ = [
    "GLA",
    "KDA",
    "MLA",
    "Analysis",
    "BestForCost",
    "BestQuality",
    "BrokenPromiseError",
    "Cost",
    "DeepseekSparse",
    "DeltaNet",
    "Dense",
    "EveryLayer",
    "GatedDeltaNet",
    "GivesUp",
    "GroupedQuery",
    "Identity",
    "LearningRates",
    "Mamba2",
    "Match",
    "Mechanism",
    "MechanismConfig",
    "MixtureOfExperts",
    "ModelConfig",
    "Needed",
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
    "__version__",
    "analyse",
    "assert_correct",
    "check",
    "fla_layer",
    "generate",
    "load_run",
    "load_study",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"attnlab has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"attnlab.{_HOME[name]}"), name)
