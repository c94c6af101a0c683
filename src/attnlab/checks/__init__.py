"""Is this mechanism what it says it is? Promises of the contract, each tried at many shapes."""

from attnlab.checks.result import Result
from attnlab.checks.suite import assert_correct, describe, judge

__all__ = ["Result", "assert_correct", "describe", "judge"]
