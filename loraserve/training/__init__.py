"""Adapters are made here: rows become tokens and labels, and these an adapter. All but `trainer` needs no torch."""
