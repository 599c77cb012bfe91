"""`moulin demo`: the main job, end to end, on this machine, judged from outside at each step."""
