"""Sealed Experts: private domain-expert adapters, sealed in signed packages and assembled into a routed mixture."""

import os

# GNU's OpenMP, which PyTorch computes with, reads this when it is loaded. By default its threads wait in a busy loop,
# and two programs of two threads on two cores slow each other down five times. With short waits it is fair: twice.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

__version__ = "0.1.0"
