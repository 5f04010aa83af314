"""What a person starts from a shell."""
