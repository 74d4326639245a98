"""Configuration files of the tests."""

LB_CONFIG = """\
[local]
name = "lb-0"
net_interface_private = "priv0"
net_interface_public = "pub0"
"""
