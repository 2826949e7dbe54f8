"""Bridges to other people's tools: each speaks one tool's protocol on top of a service, a job or a bundle.

Each needs only what its extra installs; nothing else in the project imports this room but the commands.
"""
