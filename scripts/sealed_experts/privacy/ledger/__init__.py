"""The ledger: what was released about each unit, the ε it adds up to, and what may still be spent. No torch here."""
