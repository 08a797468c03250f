"""The S3 layout: what is checked, published, verified, fetched and collected."""
