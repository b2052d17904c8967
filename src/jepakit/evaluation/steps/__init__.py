"""The kept steps of a run, judged one like the other: which is the best, and how soon."""
