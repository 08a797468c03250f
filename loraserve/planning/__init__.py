"""Pure arithmetic and data, without Pulumi: GPU memory, node fit, prices, shapes, settings."""
