"""The fault simulation: the real control plane and decider over a simulated world, judged from outside.

Read `run.py` first: one step is one action of somebody, one fault perhaps, one turn of the control
plane, and a judgement. Everything follows from the seed.
"""
