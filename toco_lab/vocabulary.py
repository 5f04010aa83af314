"""Every word that is the key of a table or the heading of a column, so that it is spelt once."""
