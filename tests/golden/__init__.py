"""Golden outputs: the results of tiny runs of the whole workflow, recorded bit for bit.

`python -m tests.golden compare` runs everything again and reports differences from `golden.json`. A change of structure
must not change them. If a change is meant to change results, write the file again: `python -m tests.golden record`.
"""
