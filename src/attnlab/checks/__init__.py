"""Tests of a mechanism: the properties of the contract, each tried at many shapes and modes."""

from attnlab.checks.result import Result
from attnlab.checks.suite import assert_correct, check_properties, describe

__all__ = ["Result", "assert_correct", "check_properties", "describe"]
