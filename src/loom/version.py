"""Loom's version, for manifests and pages."""

VERSION = "0.1.0"
