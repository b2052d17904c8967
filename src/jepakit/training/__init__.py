"""The step, the loop around it, what it logs, looks and alarms."""
