"""The ledger: what was released about each unit, what it adds up to, and what may still be spent. No torch here."""
