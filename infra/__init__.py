"""Where fss runs: the services of one machine, container images, Compose files and Kubernetes manifests."""
