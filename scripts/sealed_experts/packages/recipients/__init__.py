"""Encryption of a payload for recipients, and the recipients' keys."""
