"""Stillframe: node-local block volumes whose snapshots go to an object store while they are written."""

__version__ = "0.1.0"
