"""sandboxctl: what an operator asks and tells the sandboxd daemons of a node, the same for every isolation type.

main        the command line: global options, one parser per verb
commands/   a module per verb, loaded when its verb is given (`commands.Command`)
daemons     the daemons of this node, from their configuration files
output      tables and JSON, for people and for programs
"""
