"""The entries of the contract suite, here with bad inputs."""

from tests.contract.conftest import entry, quick_to_compile

__all__ = ["entry", "quick_to_compile"]
