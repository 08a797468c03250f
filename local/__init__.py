"""The local stack: everything that lets one Linux machine stand in for AWS. Nothing in `infra` or `loraserve` imports it."""
