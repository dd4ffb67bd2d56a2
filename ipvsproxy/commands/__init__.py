"""What an operator calls to look at things: one module for each command, listed in `commands.command_table`.

They read the kernel and objects and change neither. The proxy itself imports none of this.
"""
