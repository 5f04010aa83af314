"""Bad inputs of every kind, given to the real entry points: `make fuzz`, or `python -m tests.fuzz --help`.

A kind makes a case from a seed alone, so that each can be made again by the name that is printed with it. It knows what
lies in the file that it spoils, and so what may be read from it.
"""
