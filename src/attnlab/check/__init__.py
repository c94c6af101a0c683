"""Is this mechanism what it says it is? Promises of the contract, each tried at many shapes."""

from attnlab.check.result import Result
from attnlab.check.suite import assert_correct, check, describe

__all__ = ["Result", "assert_correct", "check", "describe"]
