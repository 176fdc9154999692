"""The shipped nano checkpoints, one folder a family; `kvfix.nano` where kvfix is installed."""
