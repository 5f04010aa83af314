"""timm's models as encoders: which kinds there are, how they are built, loaded and read layer by layer."""
