"""Labelled demo data generated on this machine, without a download.

Every public module of this package is a subcommand of ``python -m data.demo``. Module ``<name>`` has a function
``generate_<name>(out, *, seed, ...)``; its keyword arguments and their documentation are the command's options. It
returns the path of the manifest, whose paths are relative to ``out``, or without one the folder ``out``, the `root` of
a data module. DemoError: an argument is out of range, a library's file is missing, or ``out`` holds something else.
"""
