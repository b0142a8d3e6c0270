"""Pods whose containers are WebAssembly modules: each a process of its own, forked from a server that has the engine
loaded already.

    sandboxer.py, backend.py    the daemon's side: the isolation type, and what runs its containers
    fork_server.py              the daemon's side of the server; `fork_server_main.py` is the program
    module_process.py           what a forked process does until its module runs
    compile_process.py          what a forked process does that compiles: modules to native code, profiles to filters
    launch.py, plan.py          what the two sides say to each other, and what a specification asks for
    modules.py                  which file is the module, and whether it is one
    cache.py, compiler.py       what is compiled once: native code and seccomp filters
    engines/                    the engines: the only modules that load one
"""
