"""Which set it is: usual layouts, lists, arrays, and the embedded and drawn sets."""
