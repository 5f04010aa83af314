"""How good is it? Scores with their protocol, pseudo labels, and the CAM of every layer."""
