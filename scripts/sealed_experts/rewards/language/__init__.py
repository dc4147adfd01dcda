"""Facts about language for rewards: financial terms, disclaimers, repetition."""
