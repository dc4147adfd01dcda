"""Text that others wrote, on this user's terminal."""


def printable(text: str) -> str:
    """Return text in which nothing can steer a terminal or turn the reading direction."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
