"""`python -m local.moto_gaps PORT`: moto's server on 127.0.0.1, with the gaps filled."""

import sys

from moto.server import main

from local.moto_gaps import ec2, eks, s3, sts

ec2.install()
eks.install()
s3.install()
sts.install()
main(["--port", sys.argv[1]])
