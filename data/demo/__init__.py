"""Labelled demo data generated on this machine, without a download.

Every public module of this package is a subcommand of ``python -m data.demo``. Module ``<name>`` has a function
``generate_<name>(out, *, ..., progress)``; its keyword arguments and their documentation are the command's options.
"""
