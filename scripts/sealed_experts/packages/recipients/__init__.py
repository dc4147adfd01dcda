"""Encryption of a payload to named recipients, and their keys."""
