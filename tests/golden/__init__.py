"""Golden outputs: tiny runs of the whole workflow, whose results are recorded bit for bit.

`python -m tests.golden compare` runs everything again and says what differs from `golden.json`. Restructuring code
changes nothing there. A change that means to change results writes the file anew, by `python -m tests.golden record`.
"""
