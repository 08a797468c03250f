"""`python -m local.stand_ins.moto_gaps ADDRESS PORT`: moto's server, with the gaps filled."""

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
main(["--host", sys.argv[1], "--port", sys.argv[2]])
