"""Three hosts, simulated with network namespaces on one machine, whose faults Backline has to survive.

Everything runs in namespaces of its own, which end with the process that made them:

    python -m tests.cluster             the command: makes the namespaces, and shows the result
    namespaces                          the network: a bridge, and a cable to each host
    host                                the first process of a host: starts its services, like systemd
    hosts                               the hosts' configuration, and what can be done to them
    balancer                            nginx and HAProxy, and the sandbox Spotify
    clients                             people who use the API all the time
    grants                              many grants that are due at once
    faults                              what happens to a host
    run                                 one run: all faults, one after the other, and the checks
"""
