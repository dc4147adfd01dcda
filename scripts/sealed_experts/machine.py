"""Facts about this machine that need no import of torch."""

import glob
import os
import re

# The name of a GPU or of a part of one. At a word that is neither a name nor an index, CUDA stops reading the list.
_CUDA_NAME = re.compile(r"(GPU|MIG)-[\w/-]+")


def has_nvidia_device() -> bool:
    """Say whether this machine has an NVIDIA GPU that its driver shows."""
    return bool(device_files())


def visible_devices() -> list[str]:
    """Return the GPUs that CUDA programs may use, as CUDA_VISIBLE_DEVICES names them; all of them if it is not set."""
    # CUDA numbers the GPUs that it finds: a container's only GPU is 0, whatever the number of its device file.
    indices = [str(index) for index in range(len(device_files()))]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None or not indices:
        return indices
    visible: list[str] = []
    for name in map(str.strip, given.split(",")):
        if name not in indices and not _CUDA_NAME.fullmatch(name):
            break
        visible.append(name)
    return list(dict.fromkeys(visible))


def device_files() -> list[str]:
    """Return the NVIDIA devices that the driver shows."""
    return glob.glob("/dev/nvidia[0-9]*")
