"""How often the values hold the answer that the model does not give."""
