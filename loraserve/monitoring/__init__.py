"""What an operator looks at and is woken by, as data: metrics, panels, rules. infra renders them for Grafana and Prometheus."""
