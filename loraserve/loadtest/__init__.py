"""Load as applications make it: planned beforehand, sent whatever comes back, and accounted for from when each call was due."""
