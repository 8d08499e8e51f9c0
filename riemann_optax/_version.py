"""The release, in one place: the build, the package and the manifests of checkpoints read it here."""

__version__ = "0.1.0"
