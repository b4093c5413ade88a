"""The command line's runners: each opens files, calls the modules that do the work, and writes a receipt.

A runner imports what is heavy only once it knows that there is work.
"""
