"""The real Pulumi engine and the emulated AWS it works on."""
