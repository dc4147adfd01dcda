"""Sealed Experts: domain-expert adapters on one frozen language model, trained under differential privacy."""

import os

# GNU's OpenMP, which PyTorch computes with, reads this when it is loaded. By default its threads wait in a busy loop,
# and two programs of two threads on two cores slow each other down five times. With short waits it is fair: twice.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
