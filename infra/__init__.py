"""What exists after `pulumi up`: one component per module, assembled in `program.py`."""
