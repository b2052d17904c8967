"""Which patches are context and which are target: the laws, the released law, and masks of a batch as they are packed."""
