"""The whole system on one page: what `pulumi up` creates, in the order in which it depends on itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pulumi

from infra import deployed, names, preflight, release, settings, tags
from infra.adapter_bucket import AdapterBucket, find_retained
from infra.addons import Addons
from infra.budget import budget
from infra.cluster import Cluster, kubernetes_provider
from infra.endpoint import InternalEndpoint
from infra.evaluations import Evaluations
from infra.gateway import Gateway, how_to_call
from infra.iam import PodIdentity, WorkloadRole, gateway_policy, read_prefixes, workload_trust
from infra.images import loraserve_image, training_image
from infra.inference import Inference, announce_restart
from infra.isolation import Isolation, create_namespace, eks_api_server
from infra.load_test import LoadTest
from infra.monitoring.alertmanager import publish_to
from infra.monitoring.stack import Monitoring, forwards, grafana_commands, watch_serving
from infra.network import Network
from infra.node_groups import GpuNodes, NodeGroups
from infra.place import Place, serving_namespace
from infra.place import of_another as place_of_another
from infra.place import own as own_place
from infra.pod_logs import PodLogs
from infra.preflight import Checked
from infra.roles import Roles
from infra.scaling import Scaling
from infra.start_cache import StartCacheWriter, announce_start_cache, writer_policy
from infra.training import Training, training_policy
from loraserve.monitoring import rules
from loraserve.planning import cost
from loraserve.planning.advice import advice


def deploy() -> None:
    """Declares every resource of this stack."""
    tags.tag_everything()
    checked = preflight.run(find_retained)
    config, region, zones, last = checked.settings, checked.region, checked.zones, checked.last
    cluster_name = names.cluster_name(pulumi.get_stack())
    pulumi.log.info(cost.describe(config, region, len(zones.all)))
    announce_restart(config, last)
    deployed.announce_new_node_shapes(config, zones.cluster, last)
    for sentence in advice(config):
        pulumi.log.warn(sentence)
    announce_start_cache(config)
    if not config.base.has_chat_template:
        pulumi.log.warn(
            f"{config.base.name} has no chat template, so it answers no conversations: set chatTemplateFile"
        )

    # AWS: network, cluster and nodes, or those of another stack; adapters and who may read them.
    ground = another_ones_ground(checked) if config.cluster_stack else own_ground(checked)
    place, namespace = ground.place, serving_namespace(config)
    start_cache_role = f"{cluster_name}-start-cache"
    adapters = AdapterBucket(
        f"{cluster_name}-adapters",
        account=settings.allowed_account(),
        start_cache_writer=start_cache_role,
        deletion_protection=config.deletion_protection,
        retain=config.retain_adapters,
        retained=checked.retained,
        evaluators=workload_trust(place.tokens, namespace, names.EVALUATOR) if config.evaluations else None,
    )
    serving_role = WorkloadRole(
        f"{cluster_name}-serving",
        tokens=place.tokens,
        namespace=namespace,
        service_account=names.SERVING_SERVICE_ACCOUNT,
        inline_policy=adapters.bucket.arn.apply(
            lambda arn: read_prefixes(arn, (*names.CATALOG_PREFIXES, names.START_CACHE_PREFIX))
        ),
    )
    gateway_role = WorkloadRole(
        f"{cluster_name}-gateway",
        tokens=place.tokens,
        namespace=namespace,
        service_account=names.GATEWAY,
        inline_policy=adapters.bucket.arn.apply(
            lambda arn: gateway_policy(
                arn,
                reads_usage=any(key.tokens_per_month for key in config.gateway_keys),
                reads_verdicts=bool(config.evaluations),
                samples=any(key.sample_percent for key in config.gateway_keys),
            )
        ),
    )
    if config.budget:
        budget(f"{cluster_name}-budget", config.budget)
    image = loraserve_image(config.loraserve_image, place.image, deletion_protection=config.deletion_protection)

    # Kubernetes: everything below goes before the nodes and the cluster do.
    provider = kubernetes_provider(place.cluster, place.kubeconfig, after=ground.carries)
    in_cluster = pulumi.ResourceOptions(providers={"kubernetes": provider})
    in_namespace = create_namespace(namespace, "restricted", pulumi.ResourceOptions(provider=provider))
    if config.addons_enabled and ground.own:
        Addons(
            "addons",
            cluster=ground.own.cluster,
            region=region,
            gpu_idle_minutes=config.node_idle_minutes,
            gpu_spot=config.gpu_spot,
            chart_mirror=config.chart_repository,
            opts=in_cluster,
        )
    Isolation(
        "isolation",
        namespace=in_namespace,
        api_server=eks_api_server(place.vpc_cidr),
        client_namespaces=config.gateway_client_namespaces,
        load_balancer_cidr=config.vpc_cidr if config.gateway_certificate_arn else None,
        evaluations=bool(config.evaluations),
        load_test=config.load_test is not None,
        start_cache_writer=config.start_cache_writer,
        training=config.training is not None,
        traces_endpoint=config.traces_endpoint,
        emulated_aws=config.local.aws_endpoint_url is not None,
        opts=in_cluster,
    )
    inference = Inference(
        "inference",
        settings=config,
        namespace=in_namespace,
        identity=PodIdentity(adapters.bucket.id, serving_role.arn, region),
        loraserve_image=image,
        opts=in_cluster,
    )
    if config.start_cache_writer:
        writer_role = WorkloadRole(
            start_cache_role,
            tokens=place.tokens,
            namespace=namespace,
            service_account=names.START_CACHE_WRITER,
            inline_policy=adapters.bucket.arn.apply(writer_policy),
        )
        identity = PodIdentity(adapters.bucket.id, writer_role.arn, region)
        StartCacheWriter(
            names.START_CACHE_WRITER,
            settings=config,
            namespace=in_namespace,
            surroundings=replace(inference.surroundings, identity=identity),
            opts=in_cluster,
        )
    gateway = Gateway(
        "gateway",
        settings=config,
        namespace=in_namespace,
        image=image,
        vllm_key_secret=inference.api_key_secret.metadata.name,
        identity=PodIdentity(adapters.bucket.id, gateway_role.arn, region),
        opts=in_cluster,
    )
    if config.load_test:
        LoadTest(
            names.LOAD_TEST,
            settings=config,
            scenario=config.load_test,
            namespace=in_namespace,
            image=image,
            api_key=gateway.api_keys[names.LOAD_TEST],
            opts=in_cluster,
        )
    if config.evaluations:
        Evaluations(
            "evaluations",
            settings=config,
            namespace=in_namespace,
            image=image,
            api_key=gateway.api_keys[names.EVALUATOR],
            identity=PodIdentity(adapters.bucket.id, adapters.evaluator_role.arn, region),
            opts=in_cluster,
        )
    if config.scaling_enabled:
        Scaling(
            "scaling",
            settings=config,
            namespace=in_namespace,
            deployment=inference.deployment,
            gateway=gateway.service,
            opts=in_cluster,
        )
    if config.training:
        training_role = WorkloadRole(
            f"{cluster_name}-training",
            tokens=place.tokens,
            namespace=namespace,
            service_account=names.TRAINING,
            inline_policy=adapters.bucket.arn.apply(partial(training_policy, jobs=config.training.jobs)),
        )
        Training(
            names.TRAINING,
            settings=config,
            group=config.training,
            namespace=in_namespace,
            image=training_image(config.training.image, deletion_protection=config.deletion_protection),
            hub_secret=inference.api_key_secret.metadata.name,
            identity=PodIdentity(adapters.bucket.id, training_role.arn, region),
            suffix=place.suffix,
            opts=in_cluster,
        )
    if config.gateway_certificate_arn and ground.own:
        endpoint = InternalEndpoint(
            f"{cluster_name}-gateway",
            certificate_arn=config.gateway_certificate_arn,
            idle_seconds=config.balancer_idle_seconds,
            network=ground.own.network,
            cluster=ground.own.cluster,
            nodes=ground.own.nodes,
            namespace=in_namespace,
            opts=in_cluster,
        )
        pulumi.export("gatewayHostName", endpoint.host_name)
    if config.monitoring_enabled and ground.own:
        monitor(checked, ground.own, in_namespace, in_cluster)
    elif config.monitoring_enabled:
        watch_serving(in_namespace, in_cluster)

    if config.pod_log_days:
        PodLogs(
            names.POD_LOGS,
            cluster=place.cluster,
            tokens=place.tokens,
            region=region,
            days=config.pod_log_days,
            opts=in_cluster,
        )

    roles = Roles(
        cluster_name,
        account=settings.allowed_account(),
        place=place,
        bucket_arn=adapters.bucket.arn,
        namespace=in_namespace,
        publisher=config.publisher_role,
        state=config.state_bucket,
        state_key_arn=config.state_key_arn,
        opts=in_cluster,
    )

    pulumi.export("model", how_to_call(namespace, config.gateway_client_namespaces))
    pulumi.export("image", image)
    pulumi.export("release", release.describe(image, config.vllm_image))
    pulumi.export("adapterBucket", adapters.bucket.id)
    pulumi.export("catalogVersions", checked.versions)
    pulumi.export("catalogGcRole", adapters.gc_role.arn)
    pulumi.export("evaluatorRole", adapters.evaluator_role.arn)
    pulumi.export("roles", roles.arns)
    pulumi.export("baseModel", config.base.model_dump(mode="json", by_alias=True, exclude_none=True))
    pulumi.export("servingRole", serving_role.arn)
    pulumi.export("cluster", place.cluster)
    pulumi.export("namespace", namespace)
    pulumi.export("nodes", deployed.node_shapes(config, zones.cluster))
    pulumi.export("prometheusVolumeGib", config.prometheus_volume_gib if config.needs_volume_driver else 0)
    pulumi.export("region", region)
    pulumi.export("vpcCidr", place.vpc_cidr)
    pulumi.export("kubeconfigCommand", f"aws eks update-kubeconfig --name {place.cluster} --region {region}")
    pulumi.export("vllmExtraArgs", list(config.vllm_extra_args))
    pulumi.export("envelope", config.envelope.model_dump(mode="json") if config.envelope else None)


@dataclass(frozen=True)
class Own:
    """What a stack has that other stacks serve in too."""

    network: Network
    cluster: Cluster
    nodes: NodeGroups
    volume_driver: pulumi.Resource | None


@dataclass(frozen=True)
class Ground:
    """`carries`: what pods need, and so goes after them; `own` where cluster and network are this stack's."""

    place: Place
    carries: Sequence[pulumi.Resource]
    own: Own | None = None


def own_ground(checked: Checked) -> Ground:
    """Network, cluster and nodes."""
    config, name = checked.settings, names.cluster_name(pulumi.get_stack())
    network = Network(name, cidr=config.vpc_cidr, zones=checked.zones, way_out=config.nat, region=checked.region)
    cluster = Cluster(
        name,
        network=network,
        access=config.cluster_access,
        public_access_cidrs=config.public_access_cidrs,
        private_access_cidrs=config.private_access_cidrs,
        logs=config.control_plane_logs,
        deletion_protection=config.deletion_protection,
    )
    place = own_place(cluster, network, config)
    nodes = NodeGroups(name, settings=config, place=place, standing=checked.standing)
    coredns = cluster.install_coredns(nodes.system)
    cluster.install_node_monitoring_agent(nodes.system)
    volume_driver = cluster.install_ebs_csi_driver(nodes.system) if config.needs_volume_driver else None
    return Ground(place, [cluster, nodes, coredns], Own(network, cluster, nodes, volume_driver))


def another_ones_ground(checked: Checked) -> Ground:
    """GPU nodes in the cluster of the stack that `clusterStack` names."""
    place = place_of_another(checked.settings, checked.zones)
    name = names.cluster_name(pulumi.get_stack())
    return Ground(place, [GpuNodes(name, settings=checked.settings, place=place, standing=checked.standing)])


def monitor(checked: Checked, own: Own, namespace: pulumi.Input[str], in_cluster: pulumi.ResourceOptions) -> None:
    """Prometheus and what belongs to it; other stacks' pods in the cluster are asked too."""
    config, region, cluster = checked.settings, checked.region, own.cluster
    topic_arn = config.alerting.sns_topic_arn
    alertmanager_role = topic_arn and WorkloadRole(
        f"{cluster.name}-alertmanager",
        tokens=cluster.tokens,
        namespace=names.MONITORING_NAMESPACE,
        service_account=names.ALERTMANAGER,
        inline_policy=publish_to(topic_arn),
    )
    Monitoring(
        "monitoring",
        serving_namespace=namespace,
        cluster_name=cluster.name,
        zone=checked.zones.cluster[0],
        api_server=eks_api_server(str(config.vpc_cidr)),
        autoscaler=config.addons_enabled,
        keda=config.scaling_enabled,
        volume_gib=config.prometheus_volume_gib,
        volume_driver=own.volume_driver,
        chart_mirror=config.chart_repository,
        rule_groups=rules.groups(
            config.objectives,
            cost=cost.hourly_cost(config, region, len(checked.zones.all)),
        ),
        alerting=config.alerting,
        remote_write=config.remote_write,
        alertmanager_role=alertmanager_role or None,
        region=region,
        opts=in_cluster,
    )
    pulumi.export("grafana", grafana_commands())
    for name, command in forwards().items():
        pulumi.export(name, {"forward": command})
