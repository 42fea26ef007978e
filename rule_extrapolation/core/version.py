"""The version of the package, also in setup.cfg. Every layer may read it here."""

__version__ = "0.1.0"
