"""Text that others wrote, on this user's terminal."""

from sealed_experts.errors import printable

__all__ = ["printable"]
