"""`python -m local.stand_ins.moto_gaps ADDRESS PORT`: moto's server, with the gaps filled."""

import gc
import sys

from moto.server import main

from local.stand_ins.moto_gaps import ec2, eks, iam, s3, ssm, sts, tagging

ec2.install()
eks.install()
iam.install()
s3.install()
ssm.install()
sts.install()
tagging.install()
gc.freeze()
gc.set_threshold(100_000, 20, 50)
main(["--host", sys.argv[1], "--port", sys.argv[2]])
