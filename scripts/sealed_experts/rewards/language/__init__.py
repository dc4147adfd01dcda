"""What rewards know of language: the trade's words, disclaimers, repetition."""
