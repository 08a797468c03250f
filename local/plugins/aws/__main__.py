"""`python -m local.plugins.aws`: serves the plugin."""

from local.plugins.aws.plugin import provider
from local.plugins.provider import serve

serve(provider())
