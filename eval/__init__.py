"""The eval suite: benchmark protocols as probes on features, their metrics and their statistics."""
