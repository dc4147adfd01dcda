"""What can be said about this machine without importing torch."""

import glob


def has_nvidia_device() -> bool:
    """Say whether this machine has an NVIDIA GPU that its driver shows."""
    return bool(glob.glob("/dev/nvidia[0-9]*"))
