"""Where a result comes from: who signed it, whether it is unchanged, and whether it can be trained again."""
