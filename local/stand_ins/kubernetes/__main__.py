"""Entry point of `pulumi-resource-kubernetes`."""

from importlib import metadata

from local.stand_ins.kubernetes.chart import CHART, construct_chart
from local.stand_ins.kubernetes.kinds import KINDS
from local.stand_ins.kubernetes.objects import KubernetesObject
from local.stand_ins.kubernetes.settings import Connection, replaces_every_object
from local.stand_ins.provider import Provider, serve

connection = Connection()

serve(
    Provider(
        name="kubernetes",
        version=metadata.version("pulumi-kubernetes"),
        resources={kind.token: KubernetesObject(kind, connection) for kind in KINDS},
        components={CHART: construct_chart},
        configure=connection.configure,
        replace_on_config=replaces_every_object,
    )
)
