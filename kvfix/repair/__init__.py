"""The repair: losses, heads and LoRA that surface visual information and suppress key artifacts."""
