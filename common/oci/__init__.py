"""OCI bundles and runtimes: reading and rewriting config.json, and driving crun, runc or any OCI command line.

What belongs elsewhere: when to run a container and what to tell the engine (`common.task`), mounts and
namespaces themselves (`common.linux`).
"""
