"""The paper: everything ToCo computes, and nothing of the lab around it."""
