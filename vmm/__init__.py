"""Virtual machines for pods: hypervisor drivers, the guest's agent and its host-side client, and guest images."""
