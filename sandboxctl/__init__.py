"""sandboxctl: what an operator asks and tells the sandboxd daemons of a node, the same for every isolation type.

main, commands/     the command line: global options, and a module per verb, loaded when its verb is given
daemons, pods       what is configured on this node and on record, read without asking anybody
changes             what happens to pods and containers, seen in the records
client, tasks       a daemon's two APIs: pods over gRPC, what runs in them over ttrpc
ownership           which engine a pod belongs to
embedded/           an engine for pods that belong to none
output, findings    tables, paragraphs and JSON, for people and for programs
"""
