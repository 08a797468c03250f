"""`python -m local.stand_ins.aws`: serves the plugin."""

from local.stand_ins.aws.plugin import provider
from local.stand_ins.provider import serve

serve(provider())
