"""The sections of the page: from a run's files to the values of a template."""
