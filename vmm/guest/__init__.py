"""The host's end of docs/agent-protocol.md: one VM's agent as the sandboxer sees it.

    reception.py   port 1025 of the host: the announcement, and then what the guest tells unasked
    client.py      the control connection, and further connections to the guest

A guest is hostile until checked: what it sends is capped, decoded strictly, and never a path or pid to act upon.
"""
