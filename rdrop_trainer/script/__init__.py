"""What `run_glue_rdrop.py` is made of: its flags, one run from its model to its ending, and many runs together."""
