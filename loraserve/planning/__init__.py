"""Pure arithmetic and data, without Pulumi: settings and stack files, GPU memory, node fit, prices, shapes."""
