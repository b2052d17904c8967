"""The verbs `export` and `push`: an encoder to the formats of other programs, each checked against the run before it is done."""
