"""The release, which the git tag gave the installed package; manifests of checkpoints read it here."""

from importlib import metadata

try:
    __version__ = metadata.version("riemann-optax")
except metadata.PackageNotFoundError:  # a copy of the source that is not installed
    __version__ = "0.0.0"
