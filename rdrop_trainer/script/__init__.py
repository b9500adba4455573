"""The script `run_glue_rdrop.py` and command `rdrop-glue`: its flags, one run stage by stage, and several runs."""
