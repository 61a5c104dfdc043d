"""The version of this release. `clients/` has the same: see docs/releasing.md."""

__version__ = "0.1.0"
