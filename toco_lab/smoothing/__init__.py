"""How alike are the tokens? Every over-smoothing metric, per layer."""
