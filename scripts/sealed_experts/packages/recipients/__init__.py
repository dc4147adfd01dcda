"""Encryption for recipients, and their keys."""
