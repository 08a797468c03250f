"""SSM: the images of EKS's releases, of which moto knows none."""

from __future__ import annotations

import re
from typing import Any

from moto.core.utils import utcnow
from moto.ec2.models import ec2_backends
from moto.ssm.models import Parameter, SimpleSystemManagerBackend

_IMAGE = re.compile(r"/aws/service/eks/optimized-ami/1\.\d+/amazon-linux-2023/.+-v(\d{8})/image_id")


def install() -> None:
    """Every release has an image of its own."""
    known = SimpleSystemManagerBackend.get_parameter

    def get_parameter(self: SimpleSystemManagerBackend, name: str) -> Any:
        release = _IMAGE.fullmatch(name)
        if not release:
            return known(self, name)
        images = sorted(ec2_backends[self.account_id][self.region_name].amis)
        image = images[int(release[1]) % len(images)]
        return Parameter(self.account_id, name, image, "String", None, None, None, utcnow(), 1, "aws:ec2:image")

    SimpleSystemManagerBackend.get_parameter = get_parameter
