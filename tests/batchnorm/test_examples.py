"""The examples in the docstrings run as they stand, without anything imported for them."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["running", "steps"])
def test_the_examples_run(module):
    loaded = importlib.import_module(f"bnnlib.batchnorm.{module}")
    examples = [test for test in doctest.DocTestFinder().find(loaded, globs={}) if test.examples]
    assert examples
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
