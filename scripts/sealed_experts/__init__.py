"""Sealed Experts: private domain-expert adapters, sealed in signed packages and assembled into a routed mixture."""

__version__ = "0.1.0"
