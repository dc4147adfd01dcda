"""The ledger: what was released about each unit, its total ε, and how much ε is left. It does not import torch."""
