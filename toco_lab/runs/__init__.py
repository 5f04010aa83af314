"""The folder of a run: what lies in it, all of them as a table, and what each one reached."""
