"""The `aws` plugin: Pulumi's AWS provider for the types this program emits, through boto3 to an emulated AWS.

Strict on purpose: an unknown type, property or setting is an error. It proves the program's own logic, not AWS.
"""
